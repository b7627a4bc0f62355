"""Images: where they come from, preprocessing, where their tokens lie, and drawing what was kept."""
