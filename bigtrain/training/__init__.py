"""How it is learned: the loop, the engine, averages, tracking, interruption. The doors import this; it imports families."""
