"""The config of a run: its schema, and how YAML and overrides become one."""
