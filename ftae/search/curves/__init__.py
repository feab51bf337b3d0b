"""One model of all curves of a search: it proposes trials, and predicts which of them are worth their budget."""
