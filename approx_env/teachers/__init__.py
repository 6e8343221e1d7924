"""Teachers: float networks, how they are trained and quantised, and how they are stored."""
