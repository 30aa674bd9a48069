-- Finds what has come on offer to an agent or a capability since a time, however many offers are open.
CREATE INDEX handoff_offered_to_agent_since ON handoff (target_agent, updated_at) WHERE state = 'offered';
CREATE INDEX handoff_offered_to_capability_since ON handoff (target_capability, updated_at) WHERE state = 'offered';
