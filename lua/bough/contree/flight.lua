--- An operation of kind `instance` on its way: from its place in line to its end.
--
-- Each has a service that asks for it, follows its events and reads its record when it is over. The service knows
-- nothing that users hold: what they hold looks at the flight, waits on its condition, and cancels it.

local core = require "bough.core"
local errors = require "bough.error"
local follow = require "bough.contree.follow"
local operations = require "bough.contree.operations"
local results = require "bough.contree.result"

local M = {}

-- Seconds between looks at a record that is behind the events.
local LADDER = { 0.05, 0.1, 0.2, 0.5, 1, 2, 2 }

---@class bough.contree.flight
---@field uuid string? once the service has taken it
---@field started boolean its main command runs, or has run
---@field pid integer? of that
---@field exit table? data of the `exit` event of the main command
---@field ended boolean its main command has ended
---@field dropped { stdout: integer?, stderr: integer? } bytes that were cut off the main command's output
---@field over boolean nothing more will come
---@field problem any? why it did not go well
---@field document table? its last record
---@field image string? uuid of the image that it made
---@field cancelled bough.error? somebody has cancelled it, and this is what waits for it are told
---@field blind boolean? its events tell nothing of its processes: the service has no events, or keeps no more of them
---@field changed table condition, fired whenever one of these changes
---@field private hub bough.contree.hub
---@field private op string
---@field private follower bough.contree.follower?
local flight = {}
local flight_meta = { __index = flight, __name = "bough.contree.flight" }

-- The end ------------------------------------------------------------------------------------------

-- Sends the cancel, once. Waits.
local function call_off(self)
  if self.called_off or self.over or not self.uuid then return end
  self.called_off = true
  operations.cancel(self.hub.api, self.uuid, { op = self.op })
end

--- Cancels it. Never waits, and works in a finaliser.
---@param why bough.error what who waits for it is told
function flight:cancel(why)
  if self.cancelled or self.over then return end
  self.cancelled = why
  self.changed:fire()
  if self.uuid and not self.called_off then self.hub.chores:add(call_off, self) end
end

-- Under way ----------------------------------------------------------------------------------------

local handlers = {}

function handlers.spawn(self, event)
  if event.spid ~= 1 or self.started then return end
  self.started, self.pid = true, math.tointeger(event.data.pid)
  self.changed:fire()
end

function handlers.exit(self, event)
  if event.spid ~= 1 then return end
  self.exit, self.ended, self.started = event.data, true, true
  self.pid = self.pid or math.tointeger(event.data.pid)
  self.changed:fire()
end

function handlers.truncated(self, event)
  local name, dropped = event.data.stream, math.tointeger(event.data.bytes_dropped)
  if event.spid ~= 1 or (name ~= "stdout" and name ~= "stderr") or not dropped then return end
  self.dropped[name] = math.max(self.dropped[name] or 0, dropped)
end

function handlers.size_cap(self)
  self.blind = true
  self.changed:fire()
end

--- Whether it runs, as far as its record tells, where there are no events of it. Waits.
function flight:look()
  local follower = self.follower
  if not follower or follower.state ~= "poll" or self.over then return end
  local record = operations.get(self.hub.api, self.uuid, { op = self.op })
  self.blind = true
  if record.status == "EXECUTING" or results.terminal[record.status] then self.started = true end
  self.changed:fire()
end

-- Follows it to its end; returns the data of its `completion`, where one came.
local function attend(self)
  local follower <close> = follow.follow(self.hub.api, self.uuid, { op = self.op })
  self.follower = follower
  while true do
    local event = follower:next()
    if not event then return nil end
    local handler = handlers[event.type]
    if handler then handler(self, event) end
    if self.on_event then self.on_event(event) end
    if event.type == "completion" then return event.data end
  end
end

-- Its record, which may be a little behind the events.
local function last_record(self, completion)
  local record = self.follower and self.follower.operation
  if record then return record end
  for step = 0, #LADDER do
    if step > 0 then core.sleep(LADDER[step]) end
    record = operations.get(self.hub.api, self.uuid, { op = self.op })
    if results.terminal[record.status] then return record end
  end
  -- the events have the last word
  if completion and results.terminal[completion.status] then
    record.status, record.error = completion.status, completion.error
    record.result_image_uuid = completion.result_image_uuid
    return record
  end
  errors.raise("protocol", self.op, "operation %s: its events have ended, and it says that it is %s", self.uuid,
    errors.quote(record.status))
end

local function bring_in(self)
  local completion = attend(self)
  local record = last_record(self, completion)
  self.document, self.image, self.follower = record, results.image_of(record), nil
  self.problem = results.failure_of(record, self.op)
  if self.problem and self.cancelled and record.status == "CANCELLED" then self.problem = self.cancelled end
end

-- Whether some of a request that failed may have reached the service.
local function may_have_come(problem)
  if problem.status then return problem.status >= 500 end
  if problem.kind ~= "transport" and problem.kind ~= "timeout" and problem.kind ~= "protocol" then return false end
  local cause = problem.cause
  return not (type(cause) == "table" and cause.sent == false)
end

--- What became of a request that starts something and may be sent only once: a failure that leaves this open says so.
---@param problem any
---@param what string "the run"
---@param where string where to look
---@return any problem
function M.in_doubt(problem, what, where)
  if not errors.is(problem) or not may_have_come(problem) then return problem end
  return errors.new(problem.kind == "timeout" and "transport" or problem.kind, problem.op, {
    cause = problem, status = problem.status, in_doubt = true,
  }, "%s: %s may have been started all the same: %s", problem.message, what, where)
end

local function send(self, body)
  local good, uuid = pcall(operations.spawn, self.hub.api, body, { op = self.op })
  if good then return uuid end
  error(M.in_doubt(uuid, "the run", "GET /v1/operations?kind=instance lists it"), 0)
end

local function go(self, asked)
  local hub = self.hub
  local body = hub:complete(asked.body, asked.uuid, asked.user)
  if hub.gate:is_full() then
    hub.api:log("info", ("%s waits for its turn: %d operations are under way"):format(self.op, hub.gate.inside))
  end
  local pass <close> = hub.gate:enter(self.changed, function() return not self.cancelled end)
  if not pass then return end
  self.uuid = send(self, body)
  hub.api:log("debug", "an instance was started", { operation = self.uuid })
  self.changed:fire()
  if self.cancelled then pcall(call_off, self) end
  local good, problem = pcall(bring_in, self)
  if good then return end
  -- we shall not hear of it any more, so nobody can make use of it
  pcall(call_off, self)
  error(problem, 0)
end

-- What a service has caught, as those who wait for the run are told: a time limit of a request is none of theirs.
local function plain(problem, op)
  if not errors.is(problem) then
    return errors.new("api", op, { cause = problem }, "the client has failed: %s", (tostring(problem):gsub("%c", " ")))
  elseif problem.kind == "timeout" then
    return errors.new("transport", problem.op or op, { cause = problem }, "%s", problem.message)
  end
  if problem.op == nil then problem.op = op end
  return problem
end

local function fly(self, asked, on_over)
  local good, problem = pcall(go, self, asked)
  if not good then
    self.problem = plain(problem, self.op)
  elseif not self.document then
    self.problem = self.cancelled
  end
  if on_over then
    local fine, trouble = pcall(on_over, self)
    if not fine and not self.problem then self.problem = plain(trouble, self.op) end
  end
  self.over, self.on_event = true, nil
  self.hub.flights[self] = nil
  self.hub.chores:release()
  self.hub.landed:fire()
  self.changed:fire()
end

-- The beginning ------------------------------------------------------------------------------------

---@class bough.contree.hub what the flights of one engine share
---@field api bough.contree.api
---@field gate bough.contree.gate
---@field chores bough.contree.chores
---@field users bough.contree.users
---@field flights table<bough.contree.flight, true> those that are not over
---@field landed table condition, fired when one of them is
---@field complete fun(self, body: table, uuid: string, user: string?): table fills in what a request lacks; waits
---@field closed bough.error? nothing more is begun

--- Begins one. Does not wait.
---@param hub bough.contree.hub
---@param op string for messages
---@param asked { body: table, uuid: string, user: string? } the request, the image, and who is to run its command
---@param on_event fun(event: table)? told of each event as it comes; must not wait
---@param on_over (fun(flight: bough.contree.flight))? called once when nothing more will come, before anybody who waits
---  is told. May wait
---@return bough.contree.flight
function M.start(hub, op, asked, on_event, on_over)
  if hub.closed then error(hub.closed, 0) end
  local self = setmetatable({
    hub = hub, op = op, started = false, ended = false, over = false, dropped = {}, changed = core.condition(),
    on_event = on_event,
  }, flight_meta)
  hub.flights[self] = true
  hub.chores:hold()
  core.service(fly, self, asked, on_over)
  return self
end

--- Waits until its main command runs, or it is clear that it will not. Not in a finaliser.
function flight:wait_started()
  while not self.started and not self.over and not self.cancelled do
    if not self.changed:wait(0.2) then self:look() end
  end
end

--- Waits until nothing more will come.
function flight:wait()
  while not self.over do self.changed:wait() end
end

return M
