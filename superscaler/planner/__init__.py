"""Where and when: cuts, places, communication and order."""
