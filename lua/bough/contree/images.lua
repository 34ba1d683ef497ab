--- The images of a ConTree service: finding, naming, listing, importing.
--
-- The service keeps four facts of an image: uuid, tag, time, and the operation that made it. All else is that
-- operation's. Nothing of it changes but the tag, so an operation is asked for once.

local core = require "bough.core"
local errors = require "bough.error"
local files = require "bough.files"
local listing = require "bough.contree.listing"
local operations = require "bough.contree.operations"
local options = require "bough.options"
local recent = require "bough.contree.recent"
local reference = require "bough.reference"
local request = require "bough.contree.request"
local result = require "bough.contree.result"
local wire = require "bough.contree.wire"
local work = require "bough.contree.work"

local M = {}

local raise, quote = errors.raise, errors.quote

local FACTS_BYTES = 16 << 20 -- most of what is kept of operations; results hold outputs

local TAG_BYTES = 255

-- Rows ---------------------------------------------------------------------------------------------

local known = setmetatable({}, { __mode = "k" }) -- api -> what operations have told

local function facts_of(api)
  local facts = known[api]
  if not facts then
    facts = recent.new(FACTS_BYTES)
    known[api] = facts
  end
  return facts
end

local function missing(problem) return errors.is(problem) and problem.status == 404 end

-- The answer, or nil where there is no such thing.
local function found(api, call)
  local good, answer = pcall(api.call, api, call)
  if good then return answer end
  if missing(answer) then return nil end
  error(answer, 0)
end

-- One line for what made an image: what the caller gave, without what we put around it.
local function command_of(metadata)
  local command = metadata.command
  if type(command) ~= "string" then return nil end
  local argv = { command }
  for _, word in ipairs(type(metadata.args) == "table" and metadata.args or {}) do argv[#argv + 1] = tostring(word) end
  if metadata.shell == true and not argv[2] then argv = { "/bin/sh", "-c", command } end
  if argv[1] == "/bin/sh" and argv[2] == "-c" and argv[3] then
    if argv[3] == 'exec "$@" 2>&1' and argv[5] then
      argv = table.move(argv, 5, #argv, 1, {})
    else
      argv[3] = argv[3]:gsub("^exec 2>&1\n", "")
    end
  end
  return options.describe(argv)
end

-- Where nothing was run but files were put in place: their paths, sorted.
local function placed_by(metadata)
  if metadata.command ~= request.NOTHING or type(metadata.files) ~= "table" then return nil end
  local plan = {}
  for path in pairs(metadata.files) do plan[#plan + 1] = { path = tostring(path) } end
  table.sort(plan, function(a, b) return a.path < b.path end)
  return plan[1] and plan
end

-- What an operation tells of the image that it made.
local function told_by(operation, uuid)
  local metadata = type(operation.metadata) == "table" and operation.metadata or {}
  if operation.kind == "image_import" then
    local registry = type(metadata.registry) == "table" and metadata.registry or {}
    local url = type(registry.url) == "string" and registry.url or nil
    return {
      origin = "import", command = url and "import " .. url:gsub("%c", "?"):sub(1, 200),
      size = math.tointeger(operation.image_size),
    }
  end
  local parent = wire.is_uuid(operation.image_uuid) and operation.image_uuid:lower() or nil
  if parent == uuid then parent = nil end -- a run that changed nothing may leave what it began with
  -- what an instance has left: its main command is ours, and did nothing
  if metadata.command == request.HOLD and metadata.shell == true then
    return { origin = "commit", parent_uuid = parent, size = math.tointeger(operation.image_size) }
  end
  local placed = placed_by(metadata)
  if placed then
    return {
      origin = "files", command = files.describe(placed), parent_uuid = parent,
      size = math.tointeger(operation.image_size),
    }
  end
  return {
    origin = "run", command = command_of(metadata), parent_uuid = parent,
    size = math.tointeger(operation.image_size), result = result.of_operation(operation),
  }
end

local function weight_of(facts)
  local outcome = facts.result or {}
  return 1000 + #(outcome.stdout or "") + #(outcome.stderr or "") + #(facts.command or "")
end

-- What made an image; empty where nobody can tell any more.
local function origin_of(api, record)
  local uuid, operation_uuid = record.uuid, record.operation_uuid
  if not wire.is_uuid(operation_uuid) then return { origin = "import" } end
  local kept = facts_of(api)
  local facts = kept:get(uuid)
  if facts then return facts end
  local good, operation = pcall(operations.get, api, operation_uuid:lower(), { op = "get" })
  if not good then
    if missing(operation) then return {} end
    error(operation, 0)
  end
  facts = told_by(operation, uuid)
  if result.terminal[operation.status] then kept:put(uuid, facts, weight_of(facts)) end
  return facts
end

local function copy_of(outcome)
  if not outcome then return nil end
  local all = {}
  for name, value in pairs(outcome) do all[name] = value end
  all.truncated = { stdout = outcome.truncated.stdout, stderr = outcome.truncated.stderr }
  all.resources = {}
  for name, value in pairs(outcome.resources) do all.resources[name] = value end
  return all
end

local function fill(row, facts)
  row.origin, row.parent_uuid = facts.origin or row.origin, facts.parent_uuid or row.parent_uuid
  row.command, row.size = facts.command, facts.size
  row.result, row.partial = copy_of(facts.result), nil
  return row
end

-- The record of an image as a row; `partial`: the rest is to be had by `resolve`.
local function brief_row(record)
  local uuid = type(record) == "table" and record.uuid
  if not wire.is_uuid(uuid) then raise("protocol", "get", "the service told of an image without a uuid") end
  local tag = record.tag
  return {
    uuid = uuid:lower(), tag = type(tag) == "string" and tag ~= "" and tag or nil,
    created_at = wire.moment(record.created_at) or 0.0,
    operation_uuid = wire.is_uuid(record.operation_uuid) and record.operation_uuid:lower() or nil, partial = true,
  }
end

--- A full row of the record of an image. Waits.
---@param api bough.contree.api
---@param record table
---@return bough.row
function M.row(api, record)
  local row = brief_row(record)
  return fill(row, origin_of(api, row))
end

-- Listed rows are partial, but for what is known already.
local function listed_row(api, record)
  local row = brief_row(record)
  local facts = not row.operation_uuid and { origin = "import" } or facts_of(api):get(row.uuid)
  return facts and fill(row, facts) or row
end

-- Tags ---------------------------------------------------------------------------------------------

-- What keeps a text from being a tag of the service; nil when nothing does.
local function trouble_with(tag)
  if #tag > TAG_BYTES then return ("it is longer than %d bytes"):format(TAG_BYTES) end
  local wrong = tag:match "[^a-z0-9_:/.-]"
  if wrong then
    if wrong:find "%u" then return "it has capital letters" end
    return "it holds " .. quote(wrong)
  end
  if tag:find "^[:/.]" or tag:find "[:/.]$" then return "it begins or ends with a separator" end
  if tag:find "^tag:" then return 'it begins with "tag:", which is how requests tell tags from uuids' end
  return nil
end

--- Raises `invalid` for what the service does not take as a tag.
---@param tag string
---@param op string
---@return string tag
function M.check_tag(tag, op)
  local trouble = trouble_with(tag)
  if trouble then
    raise("invalid", op, "tag %s: %s: the service takes lower-case letters, digits, '_' and '-', and inside ':', '/'"
      .. " and '.'", quote(tag), trouble)
  end
  return tag
end

local function plain_tag(ref) return (ref:gsub("^tag:", "")) end

-- The uuid behind a tag, or nil.
local function look_up(api, tag)
  if tag == "" or trouble_with(tag) then return nil end
  local good, answer = pcall(found, api, {
    op = "get", path = "/inspect/", query = { { "tag", tag } }, statuses = { [302] = true }, expect = "any",
  })
  if not good then
    -- nothing says whether separators may follow each other
    if errors.is(answer) and answer.status == 400 and tag:find "[:/.][:/.]" then return nil end
    error(answer, 0)
  elseif not answer then
    return nil
  end
  local location = answer.headers.location
  local uuid = location and location:gsub("[?#].*$", ""):gsub("/+$", ""):match "[^/]*$"
  if not uuid and answer.json then uuid = answer.json.uuid end -- one that followed the redirect by itself
  uuid = type(uuid) == "string" and uuid:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
  if not uuid or not wire.is_uuid(uuid) then
    raise("protocol", "get", "the service answers to the tag %s with no uuid", quote(tag))
  end
  return uuid:lower()
end

local function record_of(api, uuid)
  local answer = found(api, { op = "get", path = ("/inspect/%s/"):format(wire.escape(uuid)) })
  return answer and answer.json
end

-- The methods of the driver ---------------------------------------------------------------------------

---@class bough.contree.images methods of the driver, which has `api`
local methods = {}
M.methods = methods

-- The record behind a tag or a uuid, or nil.
local function record_at(api, ref)
  if wire.is_uuid(ref) then return record_of(api, ref:lower()) end
  local tag = plain_tag(ref)
  local uuid = look_up(api, tag)
  local record = uuid and record_of(api, uuid)
  if record and record.tag == nil then record.tag = tag end
  return record
end

--- The image with this uuid or tag, or nil. Waits.
---@param ref string "tag:NAME" and "NAME" are the same
---@return bough.row?
function methods:resolve(ref)
  local record = record_at(self.api, ref)
  return record and M.row(self.api, record) or nil
end

local function need(row, uuid, op)
  if not row then raise("not_found", op, "no image %s", uuid) end
  return row
end

-- One that is not there is told as what it is.
local function on_image(self, uuid, call)
  call.path = ("/images/%s/tag"):format(wire.escape(uuid))
  local good, answer = pcall(self.api.call, self.api, call)
  if good then return answer end
  if missing(answer) then raise("not_found", call.op, "no image %s", uuid) end
  error(answer, 0)
end

--- Names an image; the tag leaves the image that had it. Waits. Raises `invalid` for what is no tag there.
---@param uuid string
---@param tag string
function methods:tag(uuid, tag)
  M.check_tag(tag, "tag_as")
  on_image(self, uuid, { op = "tag_as", method = "PATCH", json = { tag = tag } })
end

--- Takes the tag away. Waits.
---@param uuid string
function methods:untag(uuid)
  local good, problem = pcall(on_image, self, uuid, { op = "untag", method = "DELETE" })
  if good then return end
  if not errors.is(problem, "not_found") then error(problem, 0) end
  need(record_of(self.api, uuid), uuid, "untag") -- one without a tag is as it should be
end

--- Rows, newest first, as a filter wants them. Waits.
---@param filter { tag: string?, tag_glob: string?, tagged: boolean?, parent: string?, since: number?, before: number?,
---  limit: integer?, offset: integer?, oldest_first: boolean?, tag_first: string?, uuid_prefix: string?,
---  brief: boolean?, lineage: boolean? } tag_first: the image with this tag comes first; brief: rows are partial;
---  lineage: they have their parents
---@return bough.row[]
function methods:list(filter)
  local api = self.api
  local records = listing.images(self, filter, function(tag) return record_at(api, tag) end, function(row)
    return origin_of(api, row).parent_uuid
  end)
  local rows = {}
  for i, record in ipairs(records) do
    local row = listed_row(api, record)
    if record.parent_uuid then row.parent_uuid, row.origin = record.parent_uuid, "run" end
    rows[i] = row
  end
  if filter.lineage then
    local parents = listing.parents(api)
    for _, row in ipairs(rows) do row.parent_uuid = row.parent_uuid or parents[row.uuid] end
  end
  if not filter.brief then methods.complete(self, rows) end
  return rows
end

--- Makes partial rows whole: what made each is asked for. Waits.
---@param rows bough.row[]
function methods:complete(rows)
  work.each(#rows, 8, function(i)
    if rows[i].partial then fill(rows[i], origin_of(self.api, rows[i])) end
  end)
end

-- Imports --------------------------------------------------------------------------------------------

--- Refuses: the service imports from registries only.
---@param kind string
function methods:import(kind)
  raise("unsupported", "import", "the service imports from registries only: %s", kind == "busybox"
    and 'images:import("docker.io/library/busybox", { tag = "busybox" })' or "push the image to one first")
end

local function url_of(ref)
  local name = ("docker://%s/%s"):format(ref.domain, ref.repository)
  if ref.tag then name = name .. ":" .. ref.tag end
  if ref.digest then name = name .. "@" .. ref.digest end
  return name
end

local refused = {
  platform = "the service chooses the platform", insecure = "the service decides which registries it trusts",
  outside = "the service decides which registries it reaches",
  max_bytes = "the service has limits of its own", max_files = "the service has limits of its own",
  format = "what is in a registry needs none",
}

local function check_import(opts, op)
  for name, why in pairs(refused) do
    if opts[name] and opts[name] ~= "registry" then raise("unsupported", op, "%s: %s", name, why) end
  end
  if opts.tag then
    local trouble = trouble_with(opts.tag)
    if trouble then
      raise("invalid", op, "tag %s: %s, which the service does not take: give another, tag = ...", quote(opts.tag),
        trouble)
    end
  end
end

-- Asks for the end of an import, whoever gave it up. Waits.
local function call_off(api, uuid) pcall(operations.cancel, api, uuid, { op = "import" }) end

-- Begins an import. Whoever is cut short here does not know what it is called: it is called off when that comes.
local function begin(api, body)
  local given_up = false
  local starting = core.service(function()
    local good, uuid = pcall(operations.import, api, body, { op = "import" })
    if good and given_up then call_off(api, uuid) end
    return good, uuid
  end)
  local _ <close> = setmetatable({}, { __close = function(_, problem) given_up = problem ~= nil end })
  local good, uuid = starting:wait()
  if not good then error(uuid, 0) end
  return uuid
end

-- How far it is, where the service says so.
local function tell(progress, operation)
  local told = type(operation.progress) == "table" and operation.progress or {}
  progress.done = math.tointeger(told.done) or progress.done
  progress.total = math.tointeger(told.total) or progress.total
end

local function bring(api, body, progress)
  local uuid = begin(api, body)
  local over = false
  local _ <close> = setmetatable({}, { __close = function()
    if not over then core.service(call_off, api, uuid) end
  end })
  local operation = operations.wait(api, uuid, { op = "import", on_poll = function(now) tell(progress, now) end })
  over = true
  local failure = result.failure_of(operation, "import")
  if failure then error(failure, 0) end
  local image = result.image_of(operation)
  if not image then raise("protocol", "import", "the service says that it is imported, and not as which image") end
  local row = M.row(api, need(record_of(api, image), image, "import"))
  row.tag = row.tag or body.tag
  return row
end

--- Has the service fetch an image from a registry. What `docker login` stored here is not sent there. Closing the job
--- cancels the import.
---@param text string as bough.reference takes it
---@param opts { op: string?, tag: string|false|nil, username: string?, password: string?, timeout: number? } timeout:
---  seconds
---@return bough.job job its result a row
function methods:import_reference(text, opts)
  local op = opts.op or "import"
  check_import(opts, op)
  local body = { registry = { url = url_of(reference.parse(text, op)) }, tag = opts.tag or nil }
  if opts.username then body.registry.credentials = { username = opts.username, password = opts.password } end
  if opts.timeout and opts.timeout < math.huge then body.timeout = math.max(math.ceil(opts.timeout), 1) end
  local api = self.api
  return work.job("import", function(progress) return bring(api, body, progress) end)
end

return M
