"""CountShapes: count shapes in a picture."""
