-- What all who deliver share, and what becomes of rows that nobody needs every day.

-- Stripe told one worker to slow down: how many requests a second all of them may send from then on.
CREATE TABLE rate (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    per_s double precision NOT NULL,
    cut_at double precision NOT NULL,
    not_before double precision NOT NULL
);
