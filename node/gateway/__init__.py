"""The doors that clients come through: each turns a transport into a channel and hands it to the node's session."""
