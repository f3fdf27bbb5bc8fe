"""The adaptation study of lesson 04."""
