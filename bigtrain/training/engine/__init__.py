"""How one component is trained under a strategy: replicated on every rank (`replicated`) or sharded by DeepSpeed (`zero`), or
how it stays as it is (`frozen`). `optimizers` makes its optimizer, of torch or of our own (`gated`).

`component` is the interface that the trainer uses; `start` picks the strategy. Outside training only `options` is imported.
"""
