--- A process of the service's, between its events and the child that its caller holds.
--
-- Events cannot be held back, so what a process writes waits here until its stream takes it: the service keeps at most
-- 10 MiB of each. What goes to it is sent piece by piece. All of that is done by services, which know the child only
-- by its peer.

local core = require "bough.core"
local errors = require "bough.error"
local operations = require "bough.contree.operations"
local request = require "bough.contree.request"
local results = require "bough.contree.result"
local signals = require "bough.contree.signals"
local wire = require "bough.contree.wire"

local M = {}

local MOST, MOST_INPUT = request.MOST_OUTPUT, request.MOST_INPUT
local LOOKS = { 0.1, 0.2, 0.5, 1 } -- seconds between looks at a record; the last one repeats

-- Output -------------------------------------------------------------------------------------------

---@class bough.contree.outflow a stream of a process on its way to whoever takes it
---@field kept boolean? the caller reads it himself, whenever he likes
---@field received integer bytes
---@field dropped integer bytes that the service did not keep
---@field done boolean all is written, or nobody wants it
---@field private name "stdout"|"stderr"
---@field private peer bough.peer
---@field private writer bough.writer?
---@field private queue string[] from `first` to `last`
---@field private ended boolean? nothing more comes
---@field private feeding boolean?
---@field private refused fun()? called once when whoever took it has gone before its end
---@field private changed table condition
local outflow = {}
local outflow_meta = { __index = outflow }

local function new_outflow(peer, name, changed)
  return setmetatable({
    peer = peer, name = name, writer = peer[name], kept = peer["kept_" .. name], changed = changed, queue = {},
    first = 1, last = 0, received = 0, dropped = 0, done = peer[name] == nil,
  }, outflow_meta)
end

--- What is told of output that the service did not keep.
---@param name string
---@return bough.error
local function beyond_limit(name)
  return errors.new("resource", nil, nil, "%s: the service keeps %d MiB of it, and there was more", name, MOST >> 20)
end

-- `why`: what was not written and should have been.
local function close_outflow(self, why)
  local writer = self.writer
  self.done, self.writer, self.queue, self.first, self.last = true, nil, {}, 1, 0
  if writer then
    -- whoever reads it himself must not take this for the end
    if not why and self.dropped > 0 then why = beyond_limit(self.name) end
    if why and self.kept then pcall(self.peer.cut, self.peer, self.name, why) end
    pcall(writer.close, writer)
  end
  self.changed:fire()
end

local function feed_outflow(self)
  local writer, good = self.writer, not self.done
  while good and self.first <= self.last do
    local chunk = self.queue[self.first]
    self.queue[self.first] = nil
    self.first = self.first + 1
    good = pcall(writer.write, writer, chunk)
  end
  if good and self.ended then good = pcall(writer.flush, writer) end
  self.feeding = nil
  if not good and not self.ended then
    self.ended = true -- nobody reads it any more: what it still writes goes nowhere
    if self.refused then self.refused() end
  end
  if self.ended and not self.done then close_outflow(self) end
end

-- One service at a time writes, and only while there is something to write.
local function feed(self)
  if self.feeding then return end
  self.feeding = true
  core.service(feed_outflow, self)
end

function outflow:push(bytes)
  if self.received + #bytes > MOST then -- a service that does not keep to its own limit
    self.dropped = self.dropped + self.received + #bytes - MOST
    bytes = bytes:sub(1, MOST - self.received)
  end
  self.received = self.received + #bytes
  if self.done or self.ended or bytes == "" then return end
  self.last = self.last + 1
  self.queue[self.last] = bytes
  feed(self)
end

-- Nothing more comes.
function outflow:finish()
  if self.done or self.ended then return end
  self.ended = true
  if self.feeding or self.received > 0 then feed(self) else close_outflow(self) end
end

-- Nobody wants it, or (`why`) the rest will never come.
function outflow:drop(why)
  self.ended = true
  if not self.done then close_outflow(self, why) end
end

-- A process ----------------------------------------------------------------------------------------

---@class bough.contree.process
---@field over boolean
---@field ran boolean it runs, or has run
---@field given_up boolean nobody wants it any more
---@field failed boolean it did not run, or was lost
---@field result bough.result? of one that ran
---@field spid integer? by which the service knows it
---@field label string
---@field private trouble any why it is killed, where that is not what its caller wanted
---@field private hub bough.contree.hub
---@field private operation string? uuid of the operation in which it runs
---@field private peer bough.peer
---@field private changed table condition
---@field private out table<"stdout"|"stderr", bough.contree.outflow>
---@field private captures table<"stdout"|"stderr", boolean> what is cut without harm
---@field private is_written boolean its caller writes its input himself
---@field private owner bough.contree.process_owner
local process = {}
local process_meta = { __index = process, __name = "bough.contree.process" }

---@class bough.contree.process_owner
---@field left fun(process: bough.contree.process) told once, when it is over
---@field kill (fun(process: bough.contree.process, why: any))? ends it, in place of a signal; must not wait
---@field timeout number? seconds, after which it is killed

-- What is kept of captured output for the image's own result.
local function keep(self, name, bytes)
  local kept = self.kept_output and self.kept_output[name]
  if kept and kept.room > 0 then
    kept[#kept + 1] = bytes:sub(1, kept.room)
    kept.room = kept.room - #bytes
  end
end

local function leave(self)
  self.over = true
  self.changed:fire()
  self.owner.left(self)
end

local function close_stdin(self)
  local stdin = self.peer.stdin
  if stdin then pcall(stdin.close, stdin) end
end

--- It could not run, or was lost.
---@param problem any
function process:fail(problem)
  if self.over then return end
  self.failed = true
  close_stdin(self)
  -- what the caller has closed himself has ended for him
  local is_loss = errors.is(problem) and problem.kind ~= "closed" and problem.kind ~= "cancelled"
  self.out.stdout:drop(is_loss and problem or nil)
  self.out.stderr:drop(is_loss and problem or nil)
  self.peer:fail(problem)
  leave(self)
end

-- Whether whoever takes a stream has it all.
local function is_settled(self)
  local out = self.out
  return (out.stdout.done or out.stdout.kept) and (out.stderr.done or out.stderr.kept)
end

-- A stream that goes somewhere and did not come whole; but what is read piece by piece is told there.
local function cut_short(self)
  for _, name in ipairs { "stdout", "stderr" } do
    local out = self.out[name]
    if out.name == name and out.dropped > 0 and self.peer[name] and not out.kept and not self.captures[name] then
      return name
    end
  end
  return nil
end

local function conclude(self)
  while not is_settled(self) and not self.given_up do self.changed:wait() end
  if self.over then return end
  if self.trouble and not self.given_up then return self:fail(self.trouble) end
  local name = not self.given_up and cut_short(self)
  if name then return self:fail(beyond_limit(name)) end
  if self.given_up then
    self.out.stdout:drop()
    self.out.stderr:drop()
  end
  local result = self.result
  if self.captures.stdout then result.stdout_dropped = self.out.stdout.dropped end
  if self.captures.stderr then result.stderr_dropped = self.out.stderr.dropped end
  local good, problem = pcall(self.peer.finish, self.peer, result)
  if not good then self.peer:fail(problem) end
  leave(self)
end

--- It has ended.
---@param result bough.result
function process:finish(result)
  if self.result or self.over then return end
  if not self.ran then self:begin() end
  self.result = result
  self.changed:fire()
  close_stdin(self)
  self.out.stdout:finish()
  self.out.stderr:finish()
  if is_settled(self) then conclude(self) else core.service(conclude, self) end
end

-- Signals ------------------------------------------------------------------------------------------

-- Whether a failed request only tells that it is over already.
local function is_late(problem)
  return errors.is(problem, "state") or errors.is(problem, "not_found")
end

local function send_signal(self, name)
  while not self.spid and not self.over do self.changed:wait() end
  if self.over or self.result then return end
  local good, problem = pcall(operations.signal, self.hub.api, self.operation, self.spid, name, { op = "kill" })
  if not good and not is_late(problem) then error(problem, 0) end
end

local function try_signal(self, name)
  local good, problem = pcall(send_signal, self, name)
  if not good then self.hub.api:log("warning", "a signal was not sent", { error = tostring(problem) }) end
end

--- Sends a signal as soon as that can be done. Never waits.
---@param number integer
function process:signal(number) core.service(try_signal, self, signals.name(number)) end

-- Ends it for good; one that cannot be ended is lost.
local function kill(self)
  if self.killed or self.over then return end
  self.killed = true
  if self.owner.kill then return self.owner.kill(self, self.trouble) end
  local good, problem = pcall(send_signal, self, "KILL")
  if not good then self:fail(self.trouble or problem) end
end

local function give_up(self)
  if self.given_up or self.over then return end
  self.given_up = true
  self.changed:fire()
  if self.result then return end -- it has ended, and what it wrote goes nowhere
  if not self.sent then
    self:fail(errors.new("cancelled", nil, nil, "it was closed before it started: %s", self.label))
  else
    kill(self)
  end
end

-- What its caller asks for.
local function attend(self)
  while not self.over do
    local what, number = self.peer:next()
    if what == nil then return end
    if what == "close" then
      give_up(self)
    elseif what == "signal" then
      try_signal(self, signals.name(number))
    end
  end
end

-- Input --------------------------------------------------------------------------------------------

-- The service may let us wait until the command has read it, which takes as long as it takes.
local function send_input(self, data, close)
  local body = wire.stream(data)
  body.close = close
  local answer = self.hub.api:call {
    op = "stdin", method = "POST", path = ("/operations/%s/subprocesses/%d/stdin"):format(self.operation, self.spid),
    json = body, statuses = { [409] = true }, once = true, timeout = math.huge, stall_timeout = math.huge,
  }
  return answer.status ~= 409
end

-- What its caller writes himself goes as it comes, and nothing is read ahead.
local function pass_on(self, stdin)
  while not self.result and not self.over do
    local chunk = stdin:read "c"
    if not chunk then return send_input(self, "", true) end
    for at = 1, #chunk, MOST_INPUT do
      if not send_input(self, chunk:sub(at, at + MOST_INPUT - 1), false) then return end
    end
  end
end

-- Takes from a stream what fits one request, while the one before is under way.
local function collect(self, stdin, heap)
  local good, problem = pcall(function()
    while not self.result and not self.over and not heap.abandoned do
      if #heap.bytes >= MOST_INPUT then
        heap.changed:wait()
      else
        local chunk = stdin:read "c"
        if not chunk then return end
        heap.bytes = heap.bytes .. chunk
        heap.changed:fire()
      end
    end
  end)
  heap.ended, heap.problem = true, not good and problem or nil
  heap.changed:fire()
end

-- The same for what comes from a file, a function or another command: whatever there is goes with one request.
local function pass_on_at_once(self, stdin)
  local heap = { bytes = "", changed = core.condition() }
  local _ <close> = setmetatable({}, { __close = function()
    heap.abandoned = true
    heap.changed:fire()
  end })
  core.service(collect, self, stdin, heap)
  while not self.result and not self.over do
    while heap.bytes == "" and not heap.ended do heap.changed:wait() end
    if heap.problem then error(heap.problem, 0) end
    if heap.bytes == "" then return send_input(self, "", true) end
    local piece = heap.bytes:sub(1, MOST_INPUT)
    heap.bytes = heap.bytes:sub(MOST_INPUT + 1)
    heap.changed:fire()
    if not send_input(self, piece, false) then return end
  end
end

-- Carries over what its caller gives it to read.
local function feed_stdin(self)
  local stdin = self.peer.stdin
  local good, problem = pcall(self.is_written and pass_on or pass_on_at_once, self, stdin)
  pcall(stdin.close, stdin) -- whoever still writes is told
  if good or is_late(problem) or self.result or self.over or self.given_up then return end
  -- the command would wait for the rest for ever
  self.trouble = problem
  kill(self)
end

-- The time limit -------------------------------------------------------------------------------------

local function mind_time(self, due)
  while not self.result and not self.over do
    local left = due - core.now()
    if left <= 0 then
      self.late = true
      return kill(self)
    end
    self.changed:wait(left)
  end
end

-- Events -------------------------------------------------------------------------------------------

--- It runs.
---@param pid integer?
function process:begin(pid)
  if self.ran or self.over then return end
  self.ran, self.began = true, core.now()
  self.peer:started(pid and pid > 0 and pid or nil)
  self.changed:fire()
  if self.result then return end
  if self.peer.stdin then core.service(feed_stdin, self) end
  if self.timeout then core.service(mind_time, self, core.now() + self.timeout) end
end

local handlers = {}

function handlers.spawn(self, data) self:begin(math.tointeger(data.pid)) end

local function take_output(name)
  return function(self, data)
    local bytes = wire.bytes(data)
    keep(self, name, bytes)
    self.out[name]:push(bytes)
  end
end

handlers.stdout, handlers.stderr = take_output "stdout", take_output "stderr"

function handlers.truncated(self, data)
  local out = (data.stream == "stdout" or data.stream == "stderr") and self.out[data.stream]
  local dropped = math.tointeger(data.bytes_dropped) or 1
  if out then out.dropped = math.max(out.dropped, dropped, 1) end
end

function handlers.exit(self, data)
  self:begin(math.tointeger(data.pid))
  if self.hub.closed then return self:fail(self.hub.closed) end
  if self.watched then return self:look_again() end
  local signal = math.tointeger(data.signal)
  self:finish(results.of_exit(data, self.late and signal ~= nil and signal > 0))
end

--- Takes an event of its spid. Never waits.
---@param event table
function process:take(event)
  local handler = handlers[event.type]
  if handler and not self.over and type(event.data) == "table" then handler(self, event.data) end
end

--- Takes what its events have not told of its output from a record of the service.
---@param record table InstanceResult
function process:catch_up(record)
  for _, name in ipairs { "stdout", "stderr" } do
    local out, told = self.out[name], record[name]
    local bytes = wire.bytes(told)
    if #bytes > out.received then
      bytes = bytes:sub(out.received + 1)
      keep(self, name, bytes)
      out:push(bytes)
    end
    if type(told) == "table" and told.truncated == true then out.dropped = math.max(out.dropped, 1) end
  end
end

local function look(self)
  local step = 0
  while not self.result and not self.over do
    step = self.hurried and 1 or step + 1
    self.hurried = false
    local pause_until = core.now() + LOOKS[math.min(step, #LOOKS)]
    while core.now() < pause_until and not self.hurried and not self.result and not self.over do
      self.changed:wait(pause_until - core.now())
    end
    if self.result or self.over then return end
    local record = operations.subprocess_result(self.hub.api, self.operation, self.spid, { op = "wait" })
    self:catch_up(record)
    local result = results.of_record(record, {})
    if result then
      if self.late and result.signal == 9 then result.timed_out = true end
      return self:finish(result)
    end
  end
end

local function watch(self)
  local good, problem = pcall(look, self)
  if not good then self:fail(problem) end
end

--- There are no events of it (any more): its record is looked at again and again.
function process:watch()
  if self.watched or not self.spid or self.over or self.result then return end
  self.watched = true
  self:begin()
  core.service(watch, self)
end

--- There may be something new in its record.
function process:look_again()
  self.hurried = true
  self.changed:fire()
end

--- Captured output so far, as much as was wanted; nil where it was not captured.
---@return string? stdout
---@return string? stderr
function process:captured()
  local kept = self.kept_output or {}
  return kept.stdout and table.concat(kept.stdout), kept.stderr and table.concat(kept.stderr)
end

--- It is being asked for now: from here on it may run.
---@param operation string uuid
function process:send(operation)
  self.operation, self.sent = operation, true
end

--- The service has taken it.
---@param spid integer
function process:known(spid)
  self.spid = spid
  self.changed:fire()
  if self.given_up and not self.killed then kill(self) end
end

--- Makes one. Its caller's wishes are heard from now on.
---@param hub bough.contree.hub
---@param peer bough.peer
---@param spec table
---@param owner bough.contree.process_owner
---@param keeps boolean? captured output is kept here too
---@return bough.contree.process
function M.new(hub, peer, spec, owner, keeps)
  local changed = core.condition()
  local stdout = new_outflow(peer, "stdout", changed)
  local joined = request.is_joined(spec)
  local captures = { stdout = spec.stdout == true, stderr = spec.stderr == true }
  local self = setmetatable({
    hub = hub, peer = peer, label = spec.command, timeout = owner.timeout, owner = owner, changed = changed,
    over = false, ran = false, given_up = false, failed = false, captures = captures,
    is_written = spec.stdin == core.PIPE,
    out = { stdout = stdout, stderr = joined and stdout or new_outflow(peer, "stderr", changed) },
  }, process_meta)
  if keeps then
    self.kept_output = {
      stdout = captures.stdout and { room = spec.truncate_output_at } or nil,
      stderr = captures.stderr and { room = spec.truncate_output_at } or nil,
    }
  end
  -- where the two share a pipe, the kernel would send it; a stream that goes elsewhere has no reader to lose
  local function refused()
    if not self.given_up and not self.result then self:signal(signals.PIPE) end
  end
  self.out.stdout.refused, self.out.stderr.refused = refused, refused
  core.service(attend, self)
  return self
end

return M
