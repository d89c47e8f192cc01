"""From a recipe to a table: planning, carrying out, keeping and resuming."""
