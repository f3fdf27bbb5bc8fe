"""From scans to what networks see: contracts, paired volumes, cubes, the volume cache."""
