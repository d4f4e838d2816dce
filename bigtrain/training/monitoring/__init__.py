"""What a run says of itself: interval averages, speed, waits, profiles, warnings, metrics.jsonl."""
