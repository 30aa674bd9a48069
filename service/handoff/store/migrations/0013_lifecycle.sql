-- Sessions become dormant, expire, and are archived. An append changes expires_at and last_activity_at of its session, and no
-- index may contain them: the update would have to enter the row into every index again. So each session says when a job has
-- to look at it next. That is never later than when its change is due; a job that comes too early says when to come again.
ALTER TABLE session
    ADD COLUMN status_since    timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN idle_check_at   timestamptz NOT NULL DEFAULT now(), -- while active
    ADD COLUMN expiry_check_at timestamptz NOT NULL DEFAULT now(); -- while active or dormant
CREATE INDEX session_idle_check ON session (idle_check_at) WHERE status = 'active';
CREATE INDEX session_expiry_check ON session (expiry_check_at) WHERE status IN ('active', 'dormant');
