--- The events of an operation, each exactly once and in order, over as many connections as that takes.
--
-- A follower is a state machine: `next` makes one step after another, each with one wait in it at most, until there is
-- an event. A wait that is given up (cancelled, a deadline) leaves the machine where it was, so nothing is lost.

local cjson = require "cjson"
local core = require "bough.core"
local errors = require "bough.error"
local operations = require "bough.contree.operations"
local sse = require "bough.contree.sse"
local wire = require "bough.contree.wire"

local M = {}

local raise = errors.raise

local OP = "events"
local DRAINS = 3
local NONSENSE = 3 -- times in a row that the same event cannot be understood

--- How long is waited for what, in seconds.
M.times = {
  silence = 60, -- without a byte; services send a comment every 10 or 15
  quiet = 60, -- of comments alone, before the operation is looked at
  answer = 60, -- for the headers of a stream, and for what an operation is at
  patience = 300, -- without an answer of any kind
  pauses = { 0.1, 0.2, 0.5, 1, 2, 5 }, -- before trying again what was refused, the last one repeats
  barren_pauses = { 0.5, 0.5, 1, 2, 5 }, -- before another stream, when the last one brought nothing new
  drain_pause = 0.5, -- before reading the end of a log again
  drain = 5, -- for reading the end of the log of what has finished
}

---@class bough.contree.event
---@field id integer
---@field ts string
---@field spid integer? 0 the sandbox, 1 the main command, 2 and up those started later
---@field type string
---@field data table as the service sent it
---@field synthetic boolean? of a `completion` that was made from the operation

---@class bough.contree.follower
---@field operation bough.contree.operation? as it was last seen finished, where it was asked for
---@field state "connect"|"read"|"look"|"ask"|"drain"|"poll"|"over" what it does; "poll" where there are no events
---@field completed boolean a `completion` was handed out
---@field drained boolean the log was read to its end, with or without `completion`
---@field last integer? id of the last event that came
local follower = {}
local follower_meta = { __index = follower, __name = "bough.contree.follower" }

function follower_meta:__tostring()
  return ("events of %s (%s)"):format(self.id, self.over and "over" or self.closed and "closed" or self.state)
end

local turn_meta = { __close = function(turn) turn.taken = false end }

local codec = cjson.new()
codec.decode_max_depth(32)
codec.decode_invalid_numbers(false)

--- Follows the events of an operation. Asks for nothing before the first `next`.
---@param api bough.contree.api
---@param id string of the operation
---@param opts { since: integer?, spid: integer?, deadline: number?, op: string? }?
--- `since`: only events with a greater id; `spid`: only those of one process, which may miss `completion`;
--- `deadline`: an instant of `core.now`: then `next` raises `timeout`
---@return bough.contree.follower
function M.follow(api, id, opts)
  opts = opts or {}
  return setmetatable({
    api = api, id = id, since = opts.since, spid = opts.spid, deadline = opts.deadline, op = opts.op or OP,
    last = opts.since, state = "connect", queue = {}, first = 1, count = 0, tries = 0, barren = 0, nonsense = 0,
    drains = 0, contact = core.now(), completed = false, drained = false,
    turn = setmetatable({ taken = false }, turn_meta),
  }, follower_meta)
end

-- Events -------------------------------------------------------------------------------------------

-- The event of a frame; nil for a frame that holds none; false for one that cannot be understood.
local function event_of(frame)
  local text = frame.data
  local good, event = pcall(codec.decode, text)
  if not good then return false end
  if type(event) ~= "table" or not text:find "^%s*{" then return nil end
  if text:find("null", 1, true) then wire.drop_nulls(event) end
  local id = math.tointeger(event.id) or frame.id
  if not id or type(event.type) ~= "string" or type(event.data) ~= "table" then return false end
  event.id = id
  event.spid = math.tointeger(event.spid)
  return event
end

local function push(self, event)
  self.count = self.count + 1
  self.queue[self.count] = event
end

local function pop(self)
  local at = self.first
  local event = self.queue[at]
  if not event then return nil end
  if at == self.count then
    self.queue, self.first, self.count = {}, 1, 0
  else
    self.queue[at], self.first = nil, at + 1
  end
  return event
end

-- States -------------------------------------------------------------------------------------------

local function hang_up(self)
  local stream = self.stream
  self.stream, self.parser = nil, nil
  if stream then stream:close() end
end

local function finish(self)
  hang_up(self)
  self.over, self.state = true, "over"
end

local function fail(self, problem)
  finish(self)
  self.failure = problem
end

local function pause(self, seconds, state)
  self.resume_at, self.state = core.now() + seconds, state
end

local function rung(pauses, count) return pauses[math.min(count, #pauses)] * (0.75 + 0.5 * math.random()) end

-- The stream is no more. The operation says whether another one is worth it.
local function broken(self, problem)
  hang_up(self)
  local why = problem and problem.message or "the stream ended"
  self.api:log("info", ("%s of %s: %s"):format(self.op, self.id, why),
    { operation = self.id, last_event_id = self.last })
  if self.draining then return pause(self, M.times.drain_pause, "drain") end
  if self.fresh then
    self.barren, self.delay = 0, 0
  else
    self.barren = self.barren + 1
    self.delay = rung(M.times.barren_pauses, self.barren)
  end
  self.state = "ask"
end

-- What cannot be understood may be understood next time; but not for ever.
local function puzzled(self, what)
  self.nonsense = self.nonsense + 1
  if self.nonsense >= NONSENSE then
    local fields = { last_event_id = self.last }
    return fail(self, errors.new("protocol", self.op, fields, "%s sends %s", self.api.host, what))
  end
  self.fresh = false
  broken(self, { message = what })
end

local function take(self, frame)
  if frame.event == "sse_error" then
    broken(self, { message = "the service broke it off: " .. errors.quote(frame.data) })
    return false
  end
  local id, last = frame.id, self.last
  if id and last and id <= last then return true end
  local event = event_of(frame)
  if event == false then
    puzzled(self, "an event that cannot be understood")
    return false
  end
  id = event and event.id or id
  if not id or (last and id <= last) then return true end
  self.last, self.nonsense = id, 0
  if not event then return true end
  self.fresh = true
  push(self, event)
  if event.type == "completion" then
    finish(self)
    return false
  end
  return true
end

local states = {}

-- Whether the error is of the way to the service, and not of whoever waits here.
local function is_passing(problem)
  if problem.status then
    return problem.status == 410 or problem.status == 425 or problem.status == 429 or problem.status >= 500
  end
  return problem.kind == "transport" or (problem.kind == "timeout" and problem.op ~= "deadline")
end

-- Whether nobody has answered for too long: then this error is the end.
local function is_lost(self, problem)
  if problem.status then
    self.contact = core.now()
    return false
  end
  return core.now() - self.contact > M.times.patience
end

local no_route = { [400] = true, [404] = true, [405] = true, [406] = true }

local function open(self, following)
  return pcall(self.api.open, self.api, {
    op = self.op, path = "/operations/" .. wire.escape(self.id) .. "/events",
    query = { { "follow", following }, { "spid", self.spid }, { "since", self.since } },
    headers = self.last and self.last ~= self.since and { ["Last-Event-Id"] = ("%d"):format(self.last) } or nil,
    accept = "text/event-stream", retry = false, timeout = M.times.answer, stall_timeout = M.times.silence,
  })
end

local function opened(self, stream)
  if self.closed then return stream:close() end
  self.stream, self.parser = stream, sse.parser(self.op)
  self.fresh, self.tries = false, 0
  self.contact, self.quiet_since = core.now(), core.now()
  self.state = "read"
  local kind = stream.headers["content-type"]
  if kind and not kind:lower():find("^%s*text/event%-stream") then puzzled(self, "something else than events") end
end

function states.connect(self)
  local good, stream = open(self, true)
  if good then return opened(self, stream) end
  local problem = stream
  if not errors.is(problem) then error(problem, 0) end
  if no_route[problem.status] then
    self.tries, self.state = 0, "poll"
  elseif is_passing(problem) then
    if is_lost(self, problem) then return fail(self, problem) end
    self.tries = self.tries + 1
    self.delay = problem.retry_after or rung(M.times.pauses, self.tries)
    self.state = "ask"
  elseif problem.status or problem.kind == "protocol" then
    fail(self, problem)
  else
    error(problem, 0)
  end
end

function states.read(self)
  local good, piece = pcall(self.stream.read, self.stream)
  if not good then
    if not errors.is(piece) or piece.op ~= "http" or piece.kind == "closed" then error(piece, 0) end
    return broken(self, piece)
  end
  if not piece then
    if not self.draining then return broken(self) end
    self.drained = true
    return finish(self)
  end
  local fed, frames = pcall(self.parser.feed, self.parser, piece)
  if not fed then return fail(self, frames) end
  local parser, queued = self.parser, self.count
  for i = 1, #frames do
    if not take(self, frames[i]) then return end
  end
  local id = parser.id -- a frame with an id alone moves it too
  if id and (not self.last or id > self.last) then self.last = id end
  local now = core.now()
  if self.count > queued then
    self.quiet_since = now
  elseif now - self.quiet_since >= M.times.quiet then
    self.state = "look"
  end
end

local function ask(self)
  local good, operation, after = pcall(operations.get, self.api, self.id,
    { op = self.op, retry = false, timeout = M.times.answer })
  if good then
    self.contact = core.now()
    return operation, after
  end
  local problem = operation
  if not errors.is(problem) then error(problem, 0) end
  if is_passing(problem) then
    if is_lost(self, problem) then fail(self, problem) end
    return nil, problem.retry_after
  end
  if not problem.status and problem.kind ~= "protocol" then error(problem, 0) end
  fail(self, problem)
end

-- It is finished, but its last events may not have come.
local function begin_drain(self, operation)
  hang_up(self)
  self.operation, self.draining, self.drain_until = operation, true, core.now() + M.times.drain
  self.state = "drain"
end

-- After a stream has ended, or could not be opened.
function states.ask(self)
  local operation = ask(self)
  if self.over then return end
  if operation and operations.is_terminal(operation.status) then return begin_drain(self, operation) end
  pause(self, self.delay, "connect")
end

-- While a stream does nothing but keep alive.
function states.look(self)
  local operation = ask(self)
  if self.over then return end
  if operation and operations.is_terminal(operation.status) then return begin_drain(self, operation) end
  self.quiet_since, self.state = core.now(), "read"
end

function states.drain(self)
  if self.drains >= DRAINS or core.now() >= self.drain_until then return finish(self) end
  local good, stream = open(self, nil)
  if good then
    self.drains = self.drains + 1
    return opened(self, stream)
  end
  local problem = stream
  if not errors.is(problem) then error(problem, 0) end
  if is_passing(problem) then
    self.drains = self.drains + 1
    local seconds = problem.retry_after or M.times.drain_pause
    return pause(self, math.max(math.min(seconds, self.drain_until - core.now()), 0), "drain")
  end
  if not problem.status and problem.kind ~= "protocol" then error(problem, 0) end
  finish(self) -- the log is gone; what the operation says has to do
end

local function completion(self, operation)
  local duration = tonumber(operation.duration)
  return {
    id = (self.last or -1) + 1, ts = wire.rfc3339(core.time()), spid = 0, type = "completion", synthetic = true,
    data = {
      status = operation.status, duration_ms = duration and math.floor(duration * 1000 + 0.5) or 0,
      result_image_uuid = operations.result_image(operation), error = operation.error,
      image_size_bytes = operation.image_size,
    },
  }
end

-- Where there are no events.
function states.poll(self)
  local operation, after = ask(self)
  if self.over then return end
  if operation and operations.is_terminal(operation.status) then
    self.operation = operation
    local event = completion(self, operation)
    self.last = event.id
    push(self, event)
    return finish(self)
  end
  self.tries = self.tries + 1
  pause(self, after and math.max(after, M.times.pauses[1]) or rung(M.times.pauses, self.tries), "poll")
end

-- What users of it call ----------------------------------------------------------------------------

-- Several who wait would take the machine from each other's hands.
local function enter(self)
  if self.turn.taken then raise("state", self.op, "somebody waits for the next event already") end
  self.turn.taken = true
  return self.turn
end

local function step(self)
  local at = self.resume_at
  if not at then return states[self.state](self) end
  local left = at - core.now()
  if left > 0 then core.sleep(left) end
  self.resume_at = nil
end

local function advance(self)
  local turn <close> = enter(self) -- luacheck: ignore 211
  repeat step(self) until self.over or self.queue[self.first] or self.closed
end

local function check_deadline(self)
  if self.deadline and core.now() >= self.deadline then
    raise("timeout", self.op, "operation %s has not ended in time", self.id)
  end
end

--- The next event. Waits; may be given up and called again without losing one.
---
--- Raises `timeout` at the follower's deadline; `denied`, `auth`, `not_found` and what else the service refuses with
--- for good; `transport` when nobody answers for five minutes; `protocol` for events that cannot be understood;
--- `closed`.
---@return bough.contree.event? event nil at the end: after `completion`, or when the operation has finished without one
function follower:next()
  if self.closed then raise("closed", self.op, "the events were closed") end
  check_deadline(self)
  if not self.queue[self.first] and not self.over then
    if self.deadline then
      local good, why = pcall(core.deadline, math.max(self.deadline - core.now(), 0.001), advance, self)
      if not good then
        if errors.is(why, "timeout") and why.op == "deadline" then check_deadline(self) end
        error(why, 0)
      end
    else
      advance(self)
    end
    if self.closed then raise("closed", self.op, "the events were closed") end
  end
  local event = pop(self)
  if event then
    if event.type == "completion" then self.completed, self.drained = true, true end
    return event
  end
  if self.failure then error(self.failure, 0) end
  return nil
end

--- Ends the connection. Twice does nothing.
function follower:close()
  self.closed = true
  hang_up(self)
  self.queue, self.first, self.count = {}, 1, 0
end

follower_meta.__close = follower.close

return M
