"""The feature store: the wall between stage one and stage two. Imports nothing of ours."""
