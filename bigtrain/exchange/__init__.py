"""What leaves: diffusers pipelines and the export that writes them. Imports families; inference and the commands import it."""
