"""Senders: meter events out, outcomes back. One seam, `protocols.Sender`, and what stands behind it.

`stripe_v1.StripeSender` speaks to Stripe's v1 API, `stripe_stream.StripeStream` to the v2 event stream,
`memory.MemorySender` is for tests. `outcomes` decides what an answer means; `pacing` and `threads` are what
the flusher sends with.
"""
