"""The Distiller and how it is fitted: optimizer, exact resume, loss ledger, TensorBoard."""
