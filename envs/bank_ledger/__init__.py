"""BankLedger: find, reverse, flag and move money in a bank's accounts."""
