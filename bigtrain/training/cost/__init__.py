"""What a step costs (`step`) and how much memory a strategy needs (`memory`), computed from shapes; for `--plan` and MFU."""
