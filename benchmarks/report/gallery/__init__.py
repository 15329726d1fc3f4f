"""The page's galleries: examples that people look at. What they show was kept by the evaluation; no model is asked."""
