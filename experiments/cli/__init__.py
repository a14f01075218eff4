"""What the commands share: flags, the config, its task and its data."""
