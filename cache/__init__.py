"""The feature store, which separates stage one from stage two; imports no other package of ours."""
