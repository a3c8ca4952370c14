"""Transactions -> a log keyed by tenant: tenancy, router, envelope, the log (`fanout.log`), the relay that joins them."""
