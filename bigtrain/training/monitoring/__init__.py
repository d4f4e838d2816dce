"""What a run reports: interval averages, speed, waits, profiles, warnings, metrics.jsonl."""
