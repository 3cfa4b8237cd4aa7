"""What studies of stored weights share: a student on trial, and ways to store its weights, ours and other tools'."""
