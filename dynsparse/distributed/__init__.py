"""Communication between ranks: collectives (sync), checksums (digest), their comparison (agreement), gradients."""
