"""What several networks share: normalisation, the vector quantiser, statistics with an explicit commit, recomputation."""
