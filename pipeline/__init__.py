"""The two stages in the order data flows: datasets, extract, model, train, report."""
