"""The `omniavatar` command line."""
