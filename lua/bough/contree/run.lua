--- Runs: one operation each, whose main command is the caller's.
--
-- What is only captured comes with the operation's record. Everything else passes through a child as events bring it.

local core = require "bough.core"
local errors = require "bough.error"
local flights = require "bough.contree.flight"
local images = require "bough.contree.images"
local processes = require "bough.contree.process"
local request = require "bough.contree.request"
local results = require "bough.contree.result"
local wire = require "bough.contree.wire"
local work = require "bough.contree.work"

local M = {}

local raise = errors.raise

--- How an operation of kind `instance` has ended.
M.result_of = results.of_operation

-- The row of the image that an operation has left, or of what it was where it leaves none.
local function row_of(flight, made)
  local record = flight.document
  if not made.disposable and not flight.image then
    raise("protocol", flight.op, "operation %s has succeeded, and there is no image of it", flight.uuid)
  end
  return {
    uuid = not made.disposable and flight.image or nil, parent_uuid = made.parent, origin = made.origin,
    command = made.command, created_at = wire.moment(record.created_at) or core.time(),
    size = math.tointeger(record.image_size), result = made.result,
  }
end

M.row_of = row_of

--- Names the image of a row. Waits.
---@param hub bough.contree.hub
---@param row bough.row
---@param tag string?
function M.tag(hub, row, tag)
  if not tag or not row.uuid then return end
  images.methods.tag(hub, row.uuid, tag)
  row.tag = tag
end

-- Runs ---------------------------------------------------------------------------------------------

-- What the services of a run may see.
---@class bough.contree.run_state
---@field flight bough.contree.flight
---@field process bough.contree.process? where output or input is streamed
---@field row bough.row? at the end
---@field closed bough.error? it was closed, and this is what waits are told

---@class bough.contree.run: bough.run
---@field private state bough.contree.run_state
---@field private child bough.child?
local run = {}
local run_meta = { __name = "bough.contree.run" }

function run_meta:__index(name)
  local state = rawget(self, "state")
  if name == "running" then return not state.flight.over end
  if name == "pid" then return state.flight.pid end
  return run[name]
end

function run_meta:__tostring()
  local flight = rawget(self, "state").flight
  return ("run %s(%s)"):format(flight.uuid and flight.uuid .. " " or "", flight.over and "over"
    or flight.cancelled and "closed" or flight.started and "running" or "starting")
end

local function fresh(row)
  local copy = {}
  for name, value in pairs(row) do copy[name] = value end
  local result = {}
  for name, value in pairs(row.result) do result[name] = value end
  result.truncated = { stdout = result.truncated.stdout, stderr = result.truncated.stderr }
  result.resources = { user_time = result.user_time, system_time = result.system_time, max_rss = result.max_rss }
  copy.result = result
  return copy
end

--- Waits for the end. Repeatable. Calls the functions that were given for its streams meanwhile.
---@return bough.row
function run:wait()
  local state = self.state
  local flight = state.flight
  local result = self.child and self.child:wait()
  while not flight.over and not flight.cancelled do flight.changed:wait() end
  if flight.cancelled then error(flight.cancelled, 0) end
  if flight.problem then error(flight.problem, 0) end
  local row = fresh(state.row)
  if result then
    for _, name in ipairs { "stdout", "stderr" } do
      row.result[name], row.result.truncated[name] = result[name], result.truncated[name]
    end
  end
  return row
end

--- Has the service cancel it. Never waits. Twice does nothing.
function run:close()
  local state = self.state
  if state.flight.over then return end
  state.flight:cancel(errors.new("cancelled", "run", nil, "the run was closed"))
  if self.child then self.child:close() end
end

run_meta.__close = run.close
run_meta.__gc = run.close

local captured = { [true] = true, [false] = true, [core.STDOUT] = true }

-- Whether all that it writes may wait for its end, and all that it reads can go with the request.
local function is_plain(spec)
  return captured[spec.stdout or false] == true and captured[spec.stderr or false] == true
    and request.input(spec) ~= nil
end

-- The child of a run whose streams go elsewhere; what goes with the request is no stream of it.
local function attach(hub, spec, state)
  local given = spec
  if request.input(spec) then
    given = {}
    for name, value in pairs(spec) do given[name] = value end
    given.stdin = nil
  end
  local child, peer = core.child(given)
  state.process = processes.new(hub, peer, spec, {
    left = function() end,
    kill = function(process, why)
      why = why or errors.new("cancelled", "run", nil, "the run was closed")
      state.flight:cancel(why)
      process:fail(why)
    end,
  })
  return child
end

local function introduce(state)
  local process = state.process
  if process.spid or process.over then return end
  process:send(state.flight.uuid)
  process:known(1)
end

local function feed(state, event)
  if event.spid ~= 1 then return end
  introduce(state)
  -- its end is told with the record, when the image is there
  if event.type ~= "exit" then state.process:take(event) end
end

-- Where there are no events, it still wants its input; its output comes at its end.
local function feed_blindly(state)
  local flight = state.flight
  local good, problem = pcall(flight.wait_started, flight)
  if not good then
    flight.hub.api:log("warning", "a run was not looked at", { error = tostring(problem) })
  elseif flight.blind and flight.started then
    introduce(state)
    state.process:begin()
  end
end

-- In the flight's service, when nothing more will come.
local function conclude(hub, flight, state, made)
  local process = state.process
  if not flight.document or flight.problem then
    if process then process:fail(flight.problem or flight.cancelled) end
    return
  end
  local result = results.of_operation(flight.document, {
    stdout = made.stdout, stderr = made.stderr, limit = made.limit, dropped = flight.dropped,
  })
  local good, problem = pcall(function()
    if not result then
      raise("protocol", flight.op, "operation %s has succeeded, and nothing is told of its command", flight.uuid)
    end
    made.result = result
    state.row = row_of(flight, made)
    if not flight.cancelled then M.tag(hub, state.row, made.tag) end
  end)
  if not good then
    if process then process:fail(problem) end
    error(problem, 0)
  elseif process then
    local record = flight.document.metadata
    process:catch_up(type(record) == "table" and type(record.result) == "table" and record.result or {})
    process:finish(fresh(state.row).result)
  end
end

local function wait_start(self)
  local flight = self.state.flight
  flight:wait_started()
  if flight.started then return end
  error(flight.problem or flight.cancelled, 0)
end

--- Begins a run. Raises `unsupported` before anything is sent; returns when the command runs, or at once where
--- `spec.eager` says that its end is waited for anyway.
---@param hub bough.contree.hub
---@param uuid string
---@param spec table from bough.options; files: what a stage gave
---@return bough.run
function M.start(hub, uuid, spec)
  request.check(spec, "run")
  if spec.tag then images.check_tag(spec.tag, "run") end
  local body = request.run(uuid, spec, spec.files and spec.files:spec())
  local state = {}
  local child = not is_plain(spec) and attach(hub, spec, state) or nil
  local made = {
    parent = uuid:lower(), origin = "run", command = spec.command, tag = spec.tag, disposable = spec.disposable,
    stdout = not child and spec.stdout == true, stderr = not child and spec.stderr == true,
    limit = spec.truncate_output_at,
  }
  -- what the flight gets must not lead to what users hold: a run that nobody holds is to be collected
  state.flight = flights.start(hub, "run", { body = body, uuid = uuid, user = spec.user },
    child and function(event) feed(state, event) end, function(flight) conclude(hub, flight, state, made) end)
  if child then core.service(feed_blindly, state) end
  local self = setmetatable({ state = state, child = child }, run_meta)
  if spec.eager then return self end
  local good, problem = pcall(wait_start, self)
  if not good then
    self:close()
    error(problem, 0)
  end
  return self
end

-- Files ----------------------------------------------------------------------------------------------

--- Puts files in place by a run that does nothing else.
---@param hub bough.contree.hub
---@param uuid string
---@param staged table what a stage gave
---@param opts { tag: string?, command: string? }
---@return bough.job job its result a row
function M.put_files(hub, uuid, staged, opts)
  local body = request.files(uuid, staged:spec())
  if opts.tag then images.check_tag(opts.tag, "apply_files") end
  return work.job("apply_files", function()
    local flight = flights.start(hub, "apply_files", { body = body, uuid = uuid })
    local _ <close> = setmetatable({}, { __close = function()
      flight:cancel(errors.new("cancelled", "apply_files", nil, "it was closed"))
    end })
    flight:wait()
    if flight.problem then error(flight.problem, 0) end
    local result = results.of_operation(flight.document, {})
    if not result or not result.ok then
      raise("api", "apply_files", "operation %s, which puts the files in place, has ended with exit code %s",
        flight.uuid, result and result.exit_code or "unknown")
    end
    local row = row_of(flight, { parent = uuid:lower(), origin = "files", command = opts.command })
    M.tag(hub, row, opts.tag)
    return row
  end)
end

return M
