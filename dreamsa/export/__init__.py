"""Files for people: videos, contact sheets and meshes."""
