"""Azure Event Hubs: reading gaps again, consuming outside Functions, sending, and the trigger.

Nothing is imported here: the trigger's part must load without azure-eventhub, which takes a third
of a second.
"""
