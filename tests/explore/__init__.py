"""Every order in which a few nodes can hear of each other, searched for one in which a group's log comes apart."""
