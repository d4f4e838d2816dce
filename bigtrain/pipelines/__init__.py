"""What leaves: diffusers pipelines and the export that writes them. The doors import this; it imports families."""
