--- What the ConTree API takes: every request is held against it, so that a drift on our side is seen.
--
--   local good, what = schema.check(method, target, headers, body)
--
-- Pure: no other module of ours is used. `target` is the path with its query as it went over the wire, with any prefix
-- before /v1; names of headers are in lower case. The answer is true and the name of the operation ("GET /images"),
-- or nil and a complaint. It is stricter than a server should be: it knows what a well-behaved client sends.

local cjson = require "cjson"

local schema = {}

local codec = cjson.new()
codec.decode_max_depth(32)
codec.decode_invalid_numbers(false)

-- Types ---------------------------------------------------------------------------------------------
-- A type is a function of a value and the place it was found at; it returns nothing or a complaint.

local function text(value, at)
  if type(value) ~= "string" then return ("%s: a %s is no string"):format(at, type(value)) end
end

local function matching(pattern, what)
  return function(value, at)
    local complaint = text(value, at)
    if complaint then return complaint end
    if not value:find(pattern) then return ("%s: %q is no %s"):format(at, value, what) end
  end
end

local function whole(least, most)
  return function(value, at)
    if type(value) ~= "number" or not math.tointeger(value) then
      return ("%s: %s is no whole number"):format(at, tostring(value))
    end
    if value < least or value > (most or math.huge) then return ("%s: %d is out of range"):format(at, value) end
  end
end

local function boolean(value, at)
  if type(value) ~= "boolean" then return ("%s: a %s is no boolean"):format(at, type(value)) end
end

local function array_of(item_type)
  return function(value, at)
    if type(value) ~= "table" then return ("%s: a %s is no array"):format(at, type(value)) end
    for i in pairs(value) do
      if math.type(i) ~= "integer" then return ("%s: an object is no array"):format(at) end
    end
    for i, item in ipairs(value) do
      local complaint = item_type(item, ("%s[%d]"):format(at, i))
      if complaint then return complaint end
    end
  end
end

local function map_of(name_type, item_type)
  return function(value, at)
    if type(value) ~= "table" then return ("%s: a %s is no object"):format(at, type(value)) end
    for name, item in pairs(value) do
      local complaint = name_type(name, "a name in " .. at) or item_type(item, ("%s[%q]"):format(at, name))
      if complaint then return complaint end
    end
  end
end

-- Fields as { name = type }; those in `required` must be there, the others may be null.
local function object(fields, required, also)
  local needed = {}
  for name in (required or ""):gmatch "%S+" do needed[name] = true end
  return function(value, at)
    if type(value) ~= "table" then return ("%s: a %s is no object"):format(at, type(value)) end
    for name in pairs(needed) do
      if value[name] == nil or value[name] == cjson.null then return ("%s: %s is missing"):format(at, name) end
    end
    for name, item in pairs(value) do
      local field_type = fields[name]
      if not field_type then return ("%s: there is no field %s"):format(at, tostring(name)) end
      local complaint = item ~= cjson.null and field_type(item, at .. "." .. name)
      if complaint then return complaint end
    end
    return also and also(value, at)
  end
end

local UUID = ("^x8-x4-x4-x4-x12$"):gsub("%-", "%%-"):gsub("x(%d+)", function(n) return ("[%da-f]"):rep(tonumber(n)) end)
local uuid = matching(UUID, "UUID in lower case")
local absolute = matching("^/", "absolute path")

local function tag(value, at)
  local complaint = text(value, at)
  if complaint then return complaint end
  if #value > 256 or not value:find "^[a-z0-9_-]" or value:find "[^a-z0-9_:/.-]" then
    return ("%s: %q is no tag"):format(at, value)
  end
end

local function image_reference(value, at)
  local complaint = text(value, at)
  if complaint then return complaint end
  local name = value:match "^tag:(.*)$"
  if name then return tag(name, at) end
  return uuid(value, at)
end

-- The number of bytes behind base64, or nil when it is broken.
local function base64_size(value)
  local body, padding = value:match "^([A-Za-z0-9+/]*)(=*)$"
  if not body or #value % 4 ~= 0 or #padding > 2 then return nil end
  return #value // 4 * 3 - #padding
end

local PIECE = 512 << 10

local closable_stream = object({
  value = text, encoding = matching("^%l+[%d]*$", "encoding"), close = boolean,
}, "value", function(value, at)
  local encoding = value.encoding
  local size
  if encoding == "base64" then
    size = base64_size(value.value)
    if not size then return at .. ": broken base64" end
  elseif encoding == nil or encoding == "ascii" then
    size = #value.value
    if value.value:find "[^\t\n\r -~]" then return at .. ": what is not printable ASCII goes as base64" end
  else
    return ("%s: there is no encoding %q"):format(at, encoding)
  end
  if size > PIECE then return ("%s: %d bytes at once"):format(at, size) end
end)

local mode = matching("^[0-7][0-7][0-7][0-7]$", "mode of four octal digits")
local id = whole(0, 0xFFFFFFFE)

local function plain(pattern, what)
  return function(value, at)
    local complaint = text(value, at)
    if complaint then return complaint end
    if value:find "%z" then return at .. ": a NUL byte" end
    if pattern and value:find(pattern) then return ("%s: %q is no %s"):format(at, value, what) end
  end
end

local command = plain("^$", "command")
local argument = plain()
local variables = map_of(plain("[=]", "name of a variable"), plain())
local OUTPUT_MOST = 10485760

local function no_args_with_shell(value, at)
  if value.shell == true and type(value.args) == "table" and next(value.args) ~= nil then
    return at .. ": args beside shell"
  end
end

local spawn = object({
  command = command, image = image_reference, args = array_of(argument), shell = boolean, env = variables,
  preserve_env = boolean, cwd = absolute, uid = id, gid = id, disposable = boolean, hostname = plain("^$", "host name"),
  stdin = closable_stream,
  files = map_of(absolute, object({ uuid = uuid, uid = id, gid = id, mode = mode }, "uuid")),
  timeout = whole(1), truncate_output_at = whole(0, OUTPUT_MOST), networking = object { enabled = boolean },
  resources_limits = object { max_layer_bytes = whole(0) },
}, "command image", no_args_with_shell)

local exec = object({
  command = command, args = array_of(argument), shell = boolean, env = variables, cwd = absolute, uid = id, gid = id,
  stdin = closable_stream, truncate_output_at = whole(0, OUTPUT_MOST),
}, "command", no_args_with_shell)

local import = object({
  registry = object({
    url = matching("^docker://[^/@?#%s]+/[^?#%s]+:[^/:%s]+$", "docker://HOST/REPOSITORY:TAG"),
    credentials = object { username = text, password = text },
  }, "url"),
  tag = tag, timeout = whole(1),
}, "registry")

-- Queries -------------------------------------------------------------------------------------------
-- A type for values of a query gets the decoded text.

local function number_text(least, most)
  local check = whole(least, most)
  return function(value, at)
    if not value:find "^%-?%d+$" then return ("%s: %q is no whole number"):format(at, value) end
    return check(tonumber(value), at)
  end
end

local function one_of(...)
  local allowed = {}
  for _, value in ipairs { ... } do allowed[value] = true end
  return function(value, at)
    if not allowed[value] then return ("%s: there is no %q"):format(at, value) end
  end
end

local function moment(value, at)
  if value:find "^%d+%.?%d*$" or value:find "^%d+[smhdw]$" then return end
  local rest = value:match "^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d(.*)$"
  rest = rest and rest:gsub("^%.%d+", "")
  if not rest or #value > 40 or not (rest == "Z" or rest:find "^[+-]%d%d:%d%d$") then
    return ("%s: %q is neither a timestamp nor an interval"):format(at, value)
  end
end

local flag = one_of "1"

-- Operations ----------------------------------------------------------------------------------------

local listing = { limit = number_text(1, 1000), offset = number_text(0), since = moment, ["until"] = moment }

local function with(more)
  local all = {}
  for name, value in pairs(listing) do all[name] = value end
  for name, value in pairs(more) do all[name] = value end
  return all
end

local sha256 = matching("^" .. ("[%da-f]"):rep(64) .. "$", "digest")
local spid = matching("^[1-9]%d*$", "spid")
local segment_types = { uuid = uuid, sha256 = sha256, spid = spid }

local path_query = { path = absolute }

-- { method, path, query, body =, required =, repeated = }
local list = {
  { "GET", "/whoami" },
  { "GET", "/images", with { tagged = flag, tag = tag, uuid = matching("^[%da-f-]+$", "beginning of a UUID") } },
  { "PATCH", "/images/{uuid}/tag", json = object({ tag = tag }, "tag") },
  { "DELETE", "/images/{uuid}/tag", { tag = tag } },
  { "POST", "/images/import", json = import },
  { "GET", "/files", listing },
  { "POST", "/files", bytes = true },
  { "GET", "/files/{sha256}" },
  { "HEAD", "/files/{sha256}" },
  { "POST", "/instances", json = spawn },
  { "GET", "/operations", with {
    status = one_of("PENDING", "ASSIGNED", "EXECUTING", "SUCCESS", "FAILED", "CANCELLED"),
    kind = one_of("instance", "image_import"),
  } },
  { "GET", "/operations/{uuid}", { inflight = flag } },
  { "DELETE", "/operations/{uuid}" },
  { "GET", "/operations/{uuid}/events", { follow = flag, spid = number_text(0), since = number_text(-1) },
    events = true },
  { "POST", "/operations/{uuid}/subprocesses", json = exec },
  { "GET", "/operations/{uuid}/subprocesses/{spid}" },
  { "DELETE", "/operations/{uuid}/subprocesses/{spid}",
    { signal = matching("^[A-Z][A-Z0-9+-]*$", "name of a signal") } },
  { "POST", "/operations/{uuid}/subprocesses/{spid}/stdin", json = closable_stream },
  { "GET", "/inspect/", { tag = tag }, required = "tag" },
  { "GET", "/inspect/{uuid}/" },
  { "GET", "/inspect/{uuid}/list", { path = absolute, text = flag }, required = "path" },
  { "GET", "/inspect/{uuid}/download", path_query, required = "path" },
  { "HEAD", "/inspect/{uuid}/download", path_query, required = "path" },
  { "GET", "/inspect/{uuid}/archive", path_query, required = "path" },
  { "HEAD", "/inspect/{uuid}/archive", path_query, required = "path" },
  { "GET", "/inspect/{uuid}/grep", {
    pattern = text, path = absolute, glob = text, max_count = number_text(0), max_total = number_text(0),
    case = one_of("sensitive", "insensitive", "smart"), before = number_text(0), after = number_text(0),
  }, required = "pattern", repeated = "pattern path glob" },
}

--- The names of all operations.
--- @type string[]
schema.operations = {}

local function split(path)
  local parts = {}
  for part in path:gmatch "[^/]*" do parts[#parts + 1] = part end
  return parts
end

for i, entry in ipairs(list) do
  schema.operations[i] = entry[1] .. " " .. entry[2]
  entry.parts = split(entry[2])
  for _, name in ipairs { "required", "repeated" } do
    local set = {}
    for word in (entry[name] or ""):gmatch "%S+" do set[word] = true end
    entry[name] = set
  end
end

local function unescape(value)
  return (value:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Whether a path in segments is of this operation. Two returns: no; and why not, where only the values are wrong.
local function fits(entry, segments)
  if #segments ~= #entry.parts then return false end
  local complaint
  for i, part in ipairs(entry.parts) do
    local kind = part:match "^{(.*)}$"
    if not kind and segments[i] ~= part then return false end
    if kind then complaint = complaint or segment_types[kind](segments[i], "the path") end
  end
  return complaint == nil, complaint
end

local function find(method, segments)
  local complaint, other
  for _, entry in ipairs(list) do
    local fitting, why = fits(entry, segments)
    if fitting and entry[1] == method then return entry end
    if fitting then other = entry[1] end
    if entry[1] == method then complaint = complaint or why end
  end
  return nil, other and "the path takes another method: " .. other or complaint or "there is no such path"
end

local function check_query(entry, query)
  local types, seen = entry[3] or {}, {}
  if query == "" then return "an empty query" end
  for pair in ((query or "") .. "&"):gmatch "([^&]*)&" do
    local name, value = pair:match "^([^=]*)=(.*)$"
    if query and not name then return ("the query has %q without a value"):format(pair) end
    if name then
      if pair:find "%%%X" or pair:find "%%%x%X" or pair:find "[^%w%%=._~/:-]" then
        return ("the query holds %q, which is not escaped"):format(pair)
      end
      name, value = unescape(name), unescape(value)
      if not types[name] then return ("there is no parameter %q"):format(name) end
      if seen[name] and not entry.repeated[name] then return ("the parameter %s is there twice"):format(name) end
      seen[name] = true
      local complaint = types[name](value, name)
      if complaint then return complaint end
    end
  end
  for name in pairs(entry.required) do
    if not seen[name] then return ("the parameter %s is missing"):format(name) end
  end
end

local headers_allowed = {}
for name in ("authorization project accept accept-encoding content-type content-length transfer-encoding user-agent "
  .. "host connection last-event-id"):gmatch "%S+" do headers_allowed[name] = true end

local function check_headers(entry, headers)
  if not (headers.authorization or ""):find "^Bearer [\33-\126]+$" then return "no bearer token" end
  if headers.project and headers.project == "" then return "an empty Project" end
  if not (headers["accept-encoding"] or ""):find "%f[%w]gzip%f[%W]" then return "gzip is not accepted" end
  if (headers["user-agent"] or "") == "" then return "no User-Agent" end
  for name in pairs(headers) do
    if not headers_allowed[name] then return "the header " .. name .. " has no business there" end
  end
  if entry.events then
    if headers.accept ~= "text/event-stream" then return "events are asked for as text/event-stream" end
    local last = headers["last-event-id"]
    if last and not last:find "^%d+$" then return "Last-Event-Id is no number" end
  elseif headers["last-event-id"] then
    return "Last-Event-Id is for events"
  elseif (headers.accept or ""):find("event-stream", 1, true) then
    return "only events come as text/event-stream"
  end
end

local function check_body(entry, headers, body)
  local kind = headers["content-type"]
  local framed = headers["content-length"] or headers["transfer-encoding"]
  if entry.json then
    if not (kind or ""):lower():find "^application/json%f[;%z]" then return "the body must be application/json" end
    if not utf8.len(body) then return "the body is not UTF-8" end
    local good, value = pcall(codec.decode, body)
    if not good then return "the body is not JSON" end
    if not body:find "^%s*{" then return "the body is no object" end
    return entry.json(value, "the body")
  elseif entry.bytes then
    if kind ~= "application/octet-stream" then return "the body must be application/octet-stream" end
    if not framed then return "the body has neither a length nor chunks" end
  elseif body ~= "" or kind or (framed and headers["content-length"] ~= "0") then
    return "a body where there is none"
  end
end

--- Holds a request against the API.
--- @param method string
--- @param target string path and query, with any prefix before /v1
--- @param headers table<string, string> names in lower case
--- @param body string? decoded from chunks
--- @return true|nil good
--- @return string what the name of the operation, or a complaint
function schema.check(method, target, headers, body)
  local path, query = target:match "^([^?]*)%??(.*)$"
  if not target:find("?", 1, true) then query = nil end
  local below = path:match "^.-/v1(/.*)$"
  if not below then return nil, ("%s %s: not below /v1"):format(method, path) end
  local segments = split(below)
  for i, segment in ipairs(segments) do
    if segment:find "[^%w%%._~-]" or segment:find "%%%X" or segment:find "%%%x%X" then
      return nil, ("%s %s: the segment %q is not escaped"):format(method, path, segment)
    end
    segments[i] = unescape(segment)
  end
  local entry, why = find(method, segments)
  local complaint = why
  if entry then
    complaint = check_query(entry, query) or check_headers(entry, headers) or check_body(entry, headers, body or "")
  end
  if complaint then return nil, ("%s %s: %s"):format(method, path, complaint) end
  return true, entry[1] .. " " .. entry[2]
end

return schema
