"""TravelBooking: book, change and cancel flights for a traveller within fare rules."""
