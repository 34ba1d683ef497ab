--- Sandboxes that host processes: an operation whose main command waits until its input ends, and processes beside it.
--
-- The handle is what users' objects hold. Everything else is in its state, which services know too: they never know the
-- handle, so that one which nobody holds is collected, and cancels the operation.

local core = require "bough.core"
local errors = require "bough.error"
local flights = require "bough.contree.flight"
local images = require "bough.contree.images"
local operations = require "bough.contree.operations"
local processes = require "bough.contree.process"
local request = require "bough.contree.request"
local results = require "bough.contree.result"
local runs = require "bough.contree.run"

local M = {}

local raise = errors.raise

local PATIENCE = 5 -- seconds for a sandbox to end whose end was asked for in vain, as it seems
local EARLY = 64 << 20 -- bytes of processes whose number is still on its way here

---@class bough.contree.sandbox_state
---@field hub bough.contree.hub
---@field uuid string of the image
---@field spec table
---@field flight bough.contree.flight? nil before it is asked for
---@field changed table condition
---@field live integer processes that are not over
---@field good integer those that came to their end, wanted
---@field members table<bough.contree.process, true> those that are not over
---@field by_spid table<integer, bough.contree.process>
---@field claimed table<integer, true> numbers of processes that are or were known
---@field early table<integer, table[]> events of processes that are not known yet
---@field early_bytes integer
---@field asking integer requests for a process that are under way
---@field lost integer those whose answer was lost
---@field last { command: string, result: bough.result }? how the last process ended, for the image
---@field row bough.row?
---@field stopping boolean? it takes no more processes
---@field finishing boolean? it is being ended
---@field closed boolean?
---@field over boolean?
local state_methods = {}
local state_meta = { __index = state_methods }

-- The end ------------------------------------------------------------------------------------------

local function closed_error(self)
  return errors.new("cancelled", self.automatic and "popen" or "boot", nil, "the sandbox was closed")
end

local function ended_error() return errors.new("closed", nil, nil, "the sandbox has ended") end

-- Ends the input of the main command, and so the sandbox, which leaves an image.
local function let_go(self)
  local flight = self.flight
  flight:wait_started()
  if not flight.started or flight.over then return end
  -- to end it twice is no harm
  local good, problem = pcall(operations.stdin, self.hub.api, flight.uuid, 1, "", true, { op = "stop", retry = true })
  local due = core.now() + PATIENCE
  while not good and not flight.over and not flight.ended and core.now() < due do
    flight.changed:wait(due - core.now()) -- the answer may have been lost, and not the request
  end
  if good or flight.over or flight.ended then return end
  self.trouble = problem
  flight:cancel(problem)
end

function state_methods:finish()
  if self.finishing or self.closed or self.over then return end
  self.finishing = true
  self.changed:fire()
  self.hub.chores:add(let_go, self)
end

function state_methods:close()
  if self.closed then return end
  local was_over = self.over
  self.closed, self.finishing = true, true
  if was_over then return end
  if self.flight then self.flight:cancel(closed_error(self)) else self.over = true end
  self.changed:fire()
end

-- How a process has ended whose end its events have not told. Waits.
local function look_back(self, process)
  if self.closed or not process.spid then return nil end
  local good, record = pcall(operations.subprocess_result, self.hub.api, self.flight.uuid, process.spid,
    { op = "wait", retry = false })
  if not good or process.result or process.over then return nil end
  process:catch_up(record)
  return results.of_record(record, {})
end

-- How the sandbox was doing when it ended, for the processes that ended with it. May wait.
local function take_down(self, flight)
  local exit = flight.exit
  local record = flight.document and results.of_operation(flight.document, {})
  self.timed_out = exit ~= nil and exit.timed_out == true or record ~= nil and record.timed_out
  self.oom = record ~= nil and record.oom
  local failure = not self.closed and flight.problem
  local left_over = {}
  for process in pairs(self.members) do left_over[#left_over + 1] = process end
  for _, process in ipairs(left_over) do
    local result = process.ran and not process.result and not failure and look_back(self, process)
    if process.result or process.over then -- it is on its way out
      process:look_again()
    elseif process.ran and not failure then
      process:finish(result or results.killed(self.timed_out and not self.closed, core.now() - process.began))
    else
      process:fail(self.closed and closed_error(self) or failure or ended_error())
    end
  end
end

local function image_of(self, flight)
  if self.spec.disposable or self.closed then return end
  local last = self.last
  local made = {
    parent = self.uuid, origin = self.automatic and "run" or "commit", command = last and last.command,
    result = last and last.result,
  }
  local row = runs.row_of(flight, made)
  if self.automatic then runs.tag(self.hub, row, self.spec.tag) end
  self.row = row
end

-- In the flight's service, when nothing more will come.
local function concluded(self, flight)
  self.finishing = true
  take_down(self, flight)
  local good, problem = true, nil
  if flight.document and not flight.problem then good, problem = pcall(image_of, self, flight) end
  self.over, self.by_spid, self.claimed, self.early = true, {}, {}, {}
  self.changed:fire()
  if not good then error(problem, 0) end
end

-- Processes ----------------------------------------------------------------------------------------

-- The last one to end in time is what the image says of its making.
local function remember(self, process)
  local given = process.result
  local result = {}
  for name, value in pairs(given) do result[name] = value end
  result.stdout, result.stderr = process:captured()
  local limit = {}
  for _, name in ipairs { "stdout", "stderr" } do
    local dropped = result[name .. "_dropped"]
    limit[name] = result[name] and dropped and dropped > 0 and dropped or nil
    result[name .. "_dropped"] = nil
  end
  result.truncated = limit
  self.last = { command = process.label, result = result }
end

local function left(self, process)
  self.members[process] = nil
  if process.spid then self.by_spid[process.spid] = nil end
  if not process.failed and not process.given_up then
    if self.automatic and (self.good == 0 or not process.result.timed_out) then remember(self, process) end
    self.good = self.good + 1
  end
  self.live = self.live - 1
  self.changed:fire()
  if not self.automatic or self.live > 0 or self.finishing then return end
  if self.good > 0 then self:finish() else self:close() end
end

-- Roughly, in bytes.
local function weight_of(event) return 100 + (type(event.data.value) == "string" and #event.data.value or 0) end

local function take_early(self, process, spid)
  local events = self.early[spid]
  self.early[spid] = nil
  for _, event in ipairs(events or {}) do
    self.early_bytes = self.early_bytes - weight_of(event)
    process:take(event)
  end
end

-- A process that was started and never told to us: nobody will ever ask for it.
local function end_orphan(self, spid)
  operations.signal(self.hub.api, self.flight.uuid, spid, "KILL", { op = "exec" })
end

local function on_event(self, event)
  local spid = event.spid
  if not spid or spid < 2 then
    self.changed:fire()
    return
  end
  local process = self.by_spid[spid]
  if process then return process:take(event) end
  if self.claimed[spid] then return end -- it is over here
  if self.asking > 0 then
    local events = self.early[spid] or {}
    self.early[spid] = events
    events[#events + 1] = event
    self.early_bytes = self.early_bytes + weight_of(event)
    if self.early_bytes > EARLY then
      self.flight:cancel(errors.new("protocol", nil, nil, "the service tells of processes that nobody started"))
    end
  elseif self.lost > 0 and event.type == "spawn" then
    self.lost = self.lost - 1
    self.hub.chores:add(end_orphan, self, spid)
  end
end

local function answered(self)
  self.asking = self.asking - 1
  if self.asking > 0 then return end
  for spid in pairs(self.early) do
    if self.lost > 0 then
      self.lost = self.lost - 1
      self.hub.chores:add(end_orphan, self, spid)
    end
  end
  self.early, self.early_bytes = {}, 0
end

-- What an answer says without who said it: a process that cannot start is told of as a run that cannot.
local function plain(self, problem)
  if not errors.is(problem) or not problem.status then return problem end
  local prefix = ("%s answers %d: "):format(self.hub.api.host, problem.status)
  if problem.message:sub(1, #prefix) ~= prefix then return problem end
  return errors.new(problem.kind, nil, { status = problem.status, cause = problem }, "%s",
    problem.message:sub(#prefix + 1))
end

local function ask(self, process, body, user)
  local flight = self.flight
  flight:wait_started()
  if process.over or flight.over or flight.cancelled then return end -- whoever ended it tells the process
  self.hub:complete(body, self.uuid, user)
  if process.over or self.over then return end
  self.asking = self.asking + 1
  process:send(flight.uuid)
  local good, spid = pcall(operations.subprocess, self.hub.api, flight.uuid, body, { op = "exec" })
  if not good then
    local problem = flights.in_doubt(spid, "the process", "its sandbox is operation " .. flight.uuid)
    if errors.is(problem) and problem.in_doubt then self.lost = self.lost + 1 end
    answered(self)
    error(plain(self, problem), 0)
  end
  self.claimed[spid] = true
  if not process.over then self.by_spid[spid] = process end
  process:known(spid)
  take_early(self, process, spid)
  answered(self)
  if flight.blind then process:watch() end
end

local function start(self, process, body, user)
  local good, problem = pcall(ask, self, process, body, user)
  if good then return end
  -- one that has ended meanwhile takes no processes; why, it tells by itself
  if self.over and not self.closed and errors.is(problem, "state") then problem = ended_error() end
  process:fail(problem)
end

-- From here on events tell nothing of the processes.
local function watch_all(self)
  local flight = self.flight
  while not flight.over do
    if flight.blind then
      for process in pairs(self.members) do process:watch() end
    end
    flight.changed:wait()
  end
end

-- The handle ---------------------------------------------------------------------------------------

---@class bough.contree.sandbox: bough.sandbox
---@field private state bough.contree.sandbox_state
local sandbox = {}
local sandbox_meta = { __name = "bough.contree.sandbox" }

local function launch(self)
  if self.flight then return end
  local asked = { body = request.sandbox(self.uuid, self.spec, self.files), uuid = self.uuid }
  self.flight = flights.start(self.hub, self.automatic and "popen" or "boot", asked,
    function(event) on_event(self, event) end, function(flight) concluded(self, flight) end)
  core.service(watch_all, self)
end

local function hosts(self)
  local flight = self.flight
  return not self.stopping and not self.finishing and not self.closed and not self.over
    and not (flight and (flight.ended or flight.cancelled or flight.over))
end

local fields = {}
function fields.hosts(self) return hosts(self) end
function fields.live(self) return self.live end
function fields.wanted(self)
  local count = 0
  for process in pairs(self.members) do
    if not process.given_up then count = count + 1 end
  end
  return count
end
function fields.over(self) return self.over or false end
function fields.stopped(self) return self.over or false end
function fields.closed(self) return self.closed or false end
function fields.timed_out(self) return self.timed_out or false end
function fields.oom(self) return self.oom or false end

function sandbox_meta:__index(name)
  local field = fields[name]
  if field then return field(rawget(self, "state")) end
  return sandbox[name]
end

function sandbox_meta:__tostring()
  local state = rawget(self, "state")
  return ("sandbox %s(%s)"):format(state.flight and state.flight.uuid and state.flight.uuid .. " " or "",
    state.closed and "closed" or state.over and "over" or hosts(state) and "running" or "ending")
end

--- Waits until it is there; raises why it is not.
function sandbox:started()
  local state = self.state
  local flight = state.flight
  if not flight then return end
  flight:wait_started()
  if flight.started then return end
  error(flight.problem or flight.cancelled, 0)
end

--- Starts a process. Does not wait. Raises `unsupported` for what the service cannot do, `closed` when it takes none.
---@param spec table as `options.spec` gives it
---@return bough.child
function sandbox:exec(spec)
  local state = self.state
  request.check(spec, "exec")
  if not hosts(state) then
    local flight = state.flight
    if flight and flight.over and flight.problem and not state.closed then error(flight.problem, 0) end
    raise("closed", "exec", "the sandbox has ended")
  end
  local given = spec
  if request.input(spec) then
    given = {}
    for name, value in pairs(spec) do given[name] = value end
    given.stdin = nil -- it goes with the request
  end
  local child, peer = core.child(given)
  local process = processes.new(state.hub, peer, spec, {
    left = function(process) left(state, process) end, timeout = spec.timeout,
  }, state.automatic)
  state.members[process] = true
  state.live = state.live + 1
  launch(state)
  core.service(start, state, process, request.process(spec), spec.user)
  return child
end

local function wait_over(state)
  while not state.over and not state.closed do state.changed:wait() end
  -- its image is told of a moment before its service is done with it
  local flight = state.flight
  while flight and not flight.over and not state.closed do flight.changed:wait(0.2) end
  if not state.closed and flight and flight.problem then error(flight.problem, 0) end
end

local function copy(row)
  local all = {}
  for name, value in pairs(row) do all[name] = value end
  return all
end

--- Waits for the end, of one that is not automatic: until it is stopped.
---@return bough.row? row of its image, where it left one
function sandbox:wait()
  local state = self.state
  wait_over(state)
  return state.row and not state.closed and copy(state.row) or nil
end

--- The image that it has left. While it runs: `unsupported`, before anything is sent. Waits.
---@param opts { tag: string?, command: string?, config: string? }
---@return bough.row
function sandbox:commit(opts)
  local state = self.state
  if state.closed then raise("closed", "commit", "the sandbox was closed") end
  if state.spec.disposable then
    raise("disposed", "commit", "the sandbox was booted with disposable = true")
  end
  if opts.config then raise("unsupported", "commit", "config: the service keeps none with an image") end
  if opts.tag then images.check_tag(opts.tag, "commit") end
  if not state.over then
    if state.finishing or state.stopping then
      raise("busy", "commit", "the sandbox is stopping: wait for stop(), then commit")
    end
    raise("unsupported", "commit", "the service makes an image only of a sandbox that has ended: stop() it first")
  end
  wait_over(state)
  local row = state.row
  if not row then raise("state", "commit", "the sandbox left no image") end
  if not state.committed then
    state.committed = true
    row.command = opts.command
    runs.tag(state.hub, row, opts.tag)
  end
  return copy(row)
end

local function signal_all(state, number)
  for process in pairs(state.members) do process:signal(number) end
end

--- Ends its processes, by SIGTERM, by SIGKILL those that are left after `seconds`, and then itself. Waits until its
--- image is there.
---@param seconds number
function sandbox:stop(seconds)
  local state = self.state
  local due = core.now() + seconds
  if hosts(state) and seconds > 0 then signal_all(state, 15) end
  state.stopping = true
  state.changed:fire()
  while not state.finishing and not state.over and state.live > 0 and core.now() < due do
    state.changed:wait(due - core.now())
  end
  if not state.finishing and not state.over then signal_all(state, 9) end
  state:finish()
  wait_over(state)
end

--- Has the service cancel it, and keeps nothing. Never waits.
function sandbox:close() self.state:close() end

sandbox_meta.__close = sandbox.close
sandbox_meta.__gc = sandbox.close

--- Begins a sandbox that hosts processes. Does not wait. One that is automatic is asked for with its first process.
---@param hub bough.contree.hub
---@param uuid string
---@param spec table hostname, network, limits, timeout, disposable, files, automatic, tag, command
---@return bough.sandbox
function M.boot(hub, uuid, spec)
  request.check(spec, "boot")
  if spec.tag then images.check_tag(spec.tag, "popen") end
  local state = setmetatable({
    hub = hub, uuid = uuid:lower(), spec = spec, automatic = spec.automatic or false,
    files = spec.files and spec.files:spec() or nil, changed = core.condition(), live = 0, good = 0, members = {},
    by_spid = {}, claimed = {}, early = {}, early_bytes = 0, asking = 0, lost = 0,
  }, state_meta)
  if not state.automatic then launch(state) end
  return setmetatable({ state = state }, sandbox_meta)
end

return M
