"""Score verdicts against faults whose cost was measured; of a verdict it reads the JSON alone."""
