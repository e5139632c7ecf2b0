"""Speed and quality against peers; see each module for how to run it."""
