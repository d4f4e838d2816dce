"""Sources -> shards with an index; codes of images; and reading all of a split to verify it. May import data.read."""
