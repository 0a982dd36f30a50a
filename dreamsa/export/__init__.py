"""Files for people: videos and contact sheets."""
