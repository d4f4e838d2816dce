"""One component under a strategy: whole on every rank (`replicated`) or sharded by DeepSpeed (`zero`)."""
