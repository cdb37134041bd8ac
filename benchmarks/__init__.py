"""Every claim of the README has its script here; results/ keeps what they measured."""
