"""The DAG, the recipes and the `omniavatar` command line."""
