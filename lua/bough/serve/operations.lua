--- Operations: what clients have asked for, from the moment it is accepted until it is in the journal for good.
--
-- One that is under way lives in memory. The journal has its beginning before the client has its uuid, its events as
-- they come, and its end; when that is stored it leaves the memory, and is answered from the journal.

local core = require "bough.core"
local errors = require "bough.error"
local eventlog = require "bough.serve.eventlog"
local http = require "bough.serve.http"
local json = require "bough.json"
local record = require "bough.serve.record"
local validate = require "bough.serve.validate"

local M = {}

local RETRY = 5 -- seconds before a journal that could not be written is tried again
local PAGE = 500
local RETENTION = 180 * 86400 -- seconds after which an operation that is over is forgotten
local PRUNE_EVERY, PRUNE_MOST = 100, 200 -- so many are looked for when so many have ended
local MICROSECOND = 1e-6
local STOPPED = "the server stopped while it ran"

local steps = { PENDING = 1, ASSIGNED = 2, EXECUTING = 3, SUCCESS = 4, FAILED = 4, CANCELLED = 4 }
local TERMINAL = steps.SUCCESS

local problem = http.fail

local function unknown(id)
  problem(404, ("operation %s not found"):format(errors.quote(id)), { kind = "not_found" })
end

-- -- one operation ---------------------------------------------------------------------------------------------

---@class bough.serve.operation
---@field uuid string
---@field kind "instance"|"image_import"
---@field status string
---@field over boolean it will not change any more
---@field created number seconds since the epoch
---@field token_uuid string who asked for it
---@field image string? uuid of the image it began with
---@field log bough.serve.eventlog? of an instance
---@field sandbox table? of an instance that has one: `result()` and the processes
---@field cancelled boolean somebody wants it to end
---@field stopping string? why, where that is the server's own end
---@field private metadata string JSON
---@field private manager bough.serve.operations
local operation = {}
local operation_meta = { __index = operation, __name = "bough.serve.operation" }

function operation_meta:__tostring() return ("operation %s (%s)"):format(self.uuid, self.status) end

--- Goes on to a later state; to an earlier one does nothing. The journal need not know: what is not over when the
--- server ends has failed.
---@param status "ASSIGNED"|"EXECUTING"
function operation:advance(status)
  if steps[status] <= steps[self.status] then return end
  self.status = status
end

--- Has a function called, once, when somebody cancels it; nil: from now on it is too late for that. Where that has
--- happened already it is called at once.
---@param fn function?
function operation:on_cancel(fn)
  self.canceller = fn
  if fn and self.cancelled then self:cancel() end
end

--- Wants it to end. Its end comes later, and may be another one.
function operation:cancel()
  self.cancelled = true
  local fn = self.canceller
  self.canceller = nil
  if fn then fn() end
end

local function facts_of(self)
  local facts = {}
  for _, name in ipairs {
    "uuid", "kind", "status", "created", "error", "error_kind", "image", "result_image", "tag", "image_size",
    "consumed_cpu", "consumed_memory",
  } do
    facts[name] = self[name]
  end
  facts.duration = self.duration or core.time() - self.created
  return facts
end

local function row_of(self)
  return {
    uuid = self.uuid, status = self.status, updated = core.time(), over = true, result_image = self.result_image,
    summary = record.summary(facts_of(self)), result = self.result,
  }
end

-- Hands the end to the journal: from then on it is in every listing.
local function put(self)
  local good, note = pcall(self.manager.journal.put_operation, self.manager.journal, row_of(self))
  if good then return note end
  return { wait = function() error(note, 0) end }
end

-- Waits until it is stored. A disk that is full now may have room later; until then the memory has it. A server that
-- stops tries once more: the next one finds an operation that did not end, and says so.
local function save(self, note)
  local last = false
  while note do
    local good, problem_ = pcall(note.wait, note)
    if good then break end
    self.manager:tell { event = "error", operation = self.uuid, error = tostring(problem_) }
    if last then break end
    if not self.manager.closed then self.manager.closing:wait(RETRY) end
    last = self.manager.closed
    note = put(self)
  end
  if self.log then
    pcall(self.log.sync, self.log)
    self.log:drop()
  end
  self.manager.live[self.uuid] = nil
  self.manager.changed:fire()
  self.manager:prune()
end

-- A line in the server's log, at its beginning and at its end.
local function tell_of(self)
  self.manager:tell {
    event = "operation", operation = self.uuid, kind = self.kind, token = self.token_name, status = self.status,
    seconds = self.over and record.seconds(self.duration) or nil, error_kind = self.error_kind,
  }
end

---@class bough.serve.outcome what has come of an operation
---@field status "SUCCESS"|"FAILED"|"CANCELLED"
---@field error string? FAILED: why
---@field error_kind bough.error_kind?
---@field result_image string? uuid
---@field tag string?
---@field image_size integer? bytes
---@field consumed_cpu number? seconds
---@field consumed_memory integer? KiB
---@field result string? of an instance: its InstanceResult as JSON

--- Ends it, for good; what comes later counts for nothing.
---@param outcome bough.serve.outcome
function operation:finish(outcome)
  if self.over then return end
  for name, value in pairs(outcome) do self[name] = value end
  if self.stopping and self.status == "CANCELLED" then
    self.status, self.error, self.error_kind = "FAILED", self.stopping, "closed"
  end
  if self.status == "FAILED" then
    self.error = (self.error or "") ~= "" and self.error or "the platform failed"
  end
  self.over, self.canceller, self.ended = true, nil, core.time()
  self.duration = math.max(0, self.ended - self.created)
  if self.kind ~= "instance" then self.result = record.made(self.result_image, self.tag) end
  if self.log then
    self.log:put(0, "completion", {
      status = self.status, duration_ms = math.floor(self.duration * 1000 + 0.5),
      result_image_uuid = self.result_image or json.null, error = self.error or json.null,
      error_kind = self.error_kind, image_size_bytes = self.image_size or 0,
    })
    self.log:finish()
  end
  tell_of(self)
  local manager = self.manager
  manager.active = manager.active - 1
  manager.changed:fire()
  core.spawn(save, self, put(self))
end

-- The answer to a GET.
local function response(self, inflight)
  local summary = record.summary(facts_of(self))
  if self.kind ~= "instance" then return record.other(summary, self.metadata, self.result) end
  local result = self.result
  if not self.over and inflight and self.sandbox then result = self.sandbox:result() end
  return record.instance(summary, self.metadata, result, self.result_image)
end

-- -- all of them -----------------------------------------------------------------------------------------------

---@class bough.serve.operations
---@field journal userdata
---@field live table<string, bough.serve.operation> those that are not in the journal for good
---@field active integer how many of them are not over
---@field closed boolean no more are taken
---@field private changed userdata
---@field private last_created number
---@field private ended integer
local manager = {}
local manager_meta = { __index = manager, __name = "bough.serve.operations" }

function manager:tell(event)
  if self.log_event then self.log_event(event) end
end

-- What ran when an earlier server ended is over. Nothing of it is left: its sandboxes ended with it.
local function recover(self)
  while true do
    local rows = self.journal:operations { over = false, limit = PAGE }
    if not rows[1] then return end
    for _, row in ipairs(rows) do
      local now = core.time()
      local duration = math.max(0, now - row.created)
      if row.kind == "instance" then
        local id = self.journal:last_event(row.uuid) + 1
        local log = eventlog.new(self.journal, row.uuid)
        log:resume(id)
        log:put(0, "completion", {
          status = "FAILED", duration_ms = math.floor(duration * 1000 + 0.5), result_image_uuid = json.null,
          error = STOPPED, image_size_bytes = 0,
        })
        log:finish()
        log:sync()
      end
      self.journal:put_operation({
        uuid = row.uuid, status = "FAILED", updated = now, over = true,
        summary = record.summary {
          uuid = row.uuid, kind = row.kind, status = "FAILED", created = row.created, duration = duration,
          error = STOPPED, error_kind = "closed", image = row.image,
        },
      }):wait()
    end
  end
end

--- Forgets what is too old, once in a while. Waits.
function manager:prune()
  self.ended = self.ended + 1
  if self.ended % PRUNE_EVERY ~= 1 or self.closed then return end
  pcall(self.journal.prune, self.journal, { before = core.time() - RETENTION, limit = PRUNE_MOST })
end

--- Opens the operations of a server: `app.journal` has those of earlier ones. Waits.
---@param app table
---@return bough.serve.operations
function M.open(app)
  local self = setmetatable({
    journal = app.journal, live = {}, active = 0, ended = 0, closed = false, changed = core.condition(),
    closing = core.condition(), last_created = 0, log_event = app.log,
  }, manager_meta)
  recover(self)
  return self
end

---@class bough.serve.intention
---@field kind "instance"|"image_import"
---@field token bough.serve.token
---@field metadata table|string what the client asked for; JSON where it is text
---@field image string? uuid

--- Takes an operation on. Waits until it is in the journal: what is answered with its uuid is not forgotten. Raises
--- where it cannot be stored, and then there is none.
---@param given bough.serve.intention
---@return bough.serve.operation
function manager:create(given)
  if self.closed then problem(503, "the server is stopping", { kind = "closed", retry_after = 5 }) end
  -- no two at the same moment, so that listings have one order
  local created = math.max(math.floor(core.time() * 1e6) / 1e6, self.last_created + MICROSECOND)
  self.last_created = created
  local made = setmetatable({
    uuid = core.uuid(), kind = given.kind, status = "PENDING", over = false, created = created,
    token_uuid = given.token.uuid, token_name = given.token.name, image = given.image, cancelled = false,
    manager = self,
    metadata = type(given.metadata) == "string" and given.metadata or record.encode(given.metadata),
  }, operation_meta)
  -- counted from here on: whoever asks meanwhile must not find room that is taken
  self.live[made.uuid] = made
  self.active = self.active + 1
  local good, raised = pcall(function()
    self.journal:put_operation({
      uuid = made.uuid, kind = made.kind, status = made.status, token = made.token_uuid, image = made.image,
      created = created, updated = created, metadata = made.metadata,
    }):wait()
  end)
  if not good then
    self.live[made.uuid] = nil
    self.active = self.active - 1
    if errors.is(raised, "cancelled") then
      -- it may be there, but nobody was told of it
      pcall(self.journal.put_operation, self.journal, {
        uuid = made.uuid, status = "CANCELLED", updated = core.time(), over = true,
        summary = record.summary {
          uuid = made.uuid, kind = made.kind, status = "CANCELLED", created = created, duration = 0, image = made.image,
        },
      })
    end
    error(raised, 0)
  end
  if made.kind == "instance" then made.log = eventlog.new(self.journal, made.uuid) end
  tell_of(made)
  return made
end

--- How many operations of a token are under way.
---@param token bough.serve.token
---@return { running_instances: integer, running_imports: integer }
function manager:running(token)
  local counts = { running_instances = 0, running_imports = 0 }
  for _, one in pairs(self.live) do
    if not one.over and one.token_uuid == token.uuid then
      local name = one.kind == "instance" and "running_instances" or "running_imports"
      counts[name] = counts[name] + 1
    end
  end
  return counts
end

--- An operation that is in memory, or its row in the journal. Waits. Raises 404.
---@param id string
---@return bough.serve.operation? live
---@return table? row
function manager:find(id)
  local uuid = validate.uuid(id)
  if not uuid then unknown(id) end
  local live = self.live[uuid]
  if live then return live end
  local row = self.journal:operation(uuid)
  -- it may have come or gone meanwhile
  if self.live[uuid] then return self.live[uuid] end
  if not row then unknown(id) end
  return nil, row
end

--- The event log of an operation; nil where it has none. Waits. Raises 404.
---@param id string
---@return bough.serve.eventlog?
function manager:log(id)
  local live, row = self:find(id)
  if live then return live.log end
  if row.kind ~= "instance" or self.journal:last_event(row.uuid) < 0 then return nil end
  return eventlog.stored(self.journal, row.uuid)
end

--- Waits until no operation is under way.
---@param seconds number? at most
---@return boolean # whether that is so
function manager:drain(seconds)
  local due = seconds and core.now() + seconds
  while self.active > 0 do
    local left = due and due - core.now()
    if left and left <= 0 then return false end
    self.changed:wait(left)
  end
  return true
end

--- Takes no more, ends those under way, and waits until all is in the journal. Those that ran have FAILED then.
function manager:close()
  self.closed = true
  self.closing:fire()
  for _, one in pairs(self.live) do
    if not one.over then
      one.stopping = STOPPED
      one:cancel()
    end
  end
  while next(self.live) do self.changed:wait(1) end
end

-- -- the endpoints ---------------------------------------------------------------------------------------------

local JSON = "application/json"

local list_params = validate.listing {
  status = { "string", among = { "PENDING", "ASSIGNED", "EXECUTING", "SUCCESS", "FAILED", "CANCELLED" } },
  kind = { "string", among = { "instance", "image_import" } },
}

-- Moments as the journal compares them: as numbers of seconds two that are the same may differ in the last digit.
local function micros(seconds) return math.floor(seconds * 1e6 + 0.5) end

local function is_wanted(params, one)
  return (not params.status or one.status == params.status) and (not params.kind or one.kind == params.kind)
    and (not params.since or micros(one.created) >= micros(params.since))
    and (not params["until"] or micros(one.created) <= micros(params["until"]))
end

-- Those with a status that the journal does not know: all of them are in memory.
local function list_active(operations, params)
  local found, texts = {}, {}
  for _, one in pairs(operations.live) do
    if is_wanted(params, one) then found[#found + 1] = one end
  end
  table.sort(found, function(a, b) return a.created > b.created end)
  for i = params.offset + 1, math.min(#found, params.offset + params.limit) do
    texts[#texts + 1] = record.summary(facts_of(found[i]))
  end
  return texts
end

local function list_rows(operations, params)
  local texts = {}
  local rows = operations.journal:operations {
    status = params.status, kind = params.kind, since = params.since,
    before = params["until"] and params["until"] + MICROSECOND, limit = params.limit, offset = params.offset,
  }
  for i, row in ipairs(rows) do
    local live = operations.live[row.uuid]
    if row.summary then
      texts[i] = row.summary
    elseif live then
      texts[i] = record.summary(facts_of(live))
    else
      row.duration = math.max(0, row.updated - row.created)
      texts[i] = record.summary(row)
    end
  end
  return texts
end

--- GET /operations
function M.list(app, request)
  local params = validate.params(request.params, list_params)
  local active = params.status and steps[params.status] < TERMINAL
  local texts = (active and list_active or list_rows)(app.operations, params)
  request:send(200, JSON, "[" .. table.concat(texts, ",") .. "]")
end

local get_params = { inflight = { "flag", default = false } }

--- GET /operations/{id}
function M.get(app, request, id)
  local params = validate.params(request.params, get_params)
  local live, row = app.operations:find(id)
  if live then
    return request:send(200, JSON, response(live, params.inflight), not live.over and { ["Retry-After"] = "1" } or nil)
  end
  row.duration = math.max(0, row.updated - row.created)
  local summary = row.summary or record.summary(row)
  local text
  if row.kind == "instance" then
    text = record.instance(summary, row.metadata or "{}", row.result, row.result_image)
  else
    text = record.other(summary, row.metadata or "{}", row.result)
  end
  request:send(200, JSON, text)
end

--- DELETE /operations/{id}: it will end soon.
function M.cancel(app, request, id)
  local live = app.operations:find(id)
  if not live or live.over then problem(409, "operation is not cancellable", { kind = "state" }) end
  live:cancel()
  request:reply(202)
end

return M
