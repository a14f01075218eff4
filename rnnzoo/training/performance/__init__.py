"""How fast a run is, and how fast its devices could be."""
