--- What is inside of images: directories, files, archives, and lines that fit an expression.

local check = require "bough.check"
local errors = require "bough.error"
local json = require "bough.json"
local http = require "bough.serve.http"
local images = require "bough.serve.images"
local names = require "bough.serve.names"
local record = require "bough.serve.record"
local validate = require "bough.serve.validate"

local M = {}

local raise = errors.raise

local BYTES, TAR = "application/octet-stream", "application/x-tar"

local LOOKS = 64 -- processes that look into images at a time
local BATCH = 256 << 10 -- bytes of a listing that are sent at once
local GREP_SECONDS = 30
local GREP_BYTES = 8 << 20 -- of lines in one answer
local GREP_TOTAL = 10000 -- matching lines
local GREP_CONTEXT = 1000

local function problem(status, message, kind, fields)
  fields = fields or {}
  fields.kind = kind
  error(http.problem(status, message, fields), 0)
end

-- One more process that looks into an image, until the value is closed.
local function admit(app)
  local looks = app.looks or { count = 0 }
  app.looks = looks
  if looks.count >= LOOKS then
    problem(429, ("Max concurrency limit of %d searches reached"):format(LOOKS), "resource", { retry_after = 1 })
  end
  looks.count = looks.count + 1
  return setmetatable({}, { __close = function() looks.count = looks.count - 1 end })
end

local function path_of(text)
  if text == "" then return nil, "must not be empty" end
  return text:sub(1, 1) == "/" and text or "/" .. text
end

local path_params = { path = { "string", required = true, max = 4096, test = path_of } }

-- What went wrong with a path, as the service says it.
local function explain(trouble, path, wanted)
  if errors.is(trouble, "not_found") then problem(404, ("path %s does not exist"):format(path), "not_found") end
  if errors.is(trouble, "invalid") or trouble.errno == 40 then -- ELOOP
    problem(422, ("path %s is not %s"):format(path, wanted), "invalid")
  end
  error(trouble, 0)
end

-- Calls a method of an image that takes a path, or raises what `explain` makes of its failure.
local function attempt(path, wanted, method, ...)
  local outcome = table.pack(pcall(method, ...))
  if outcome[1] then return table.unpack(outcome, 2, outcome.n) end
  if not errors.is(outcome[2]) then error(outcome[2], 0) end
  return explain(outcome[2], path, wanted)
end

-- -- images ---------------------------------------------------------------------------------------------------

local find_params = { tag = { "string", required = true, min = 1, max = 256 } }

-- The image with exactly this tag. What cannot be a tag is none.
local function tagged(app, tag)
  if not pcall(check.tag, tag) then return nil end
  if tag:find "[*?]" then tag = tag:gsub("[*?[]", "[%0]") end -- a pattern to `list`
  return app.box.images:list({ tag = tag, number = 1 })[1]
end

--- GET /inspect/?tag=: where the image with the tag is.
function M.find(app, request)
  local params = validate.params(request.params, find_params)
  local image = tagged(app, params.tag)
  if not image then problem(404, ("tag %s not found"):format(params.tag), "not_found") end
  request:reply(302, nil, { Location = image.uuid .. "/" })
end

--- GET /inspect/{uuid}/
function M.image(app, request, uuid) request:reply(200, images.describe_one(app, images.find(app, uuid))) end

-- -- directories ------------------------------------------------------------------------------------------------

local type_bits = { file = 32768, dir = 16384, symlink = 40960, fifo = 4096, socket = 49152, other = 8192 }

local function item_of(entry, known)
  return {
    path = entry.name, size = entry.size, owner = known.users[entry.uid] or entry.uid,
    group = known.groups[entry.gid] or entry.gid, uid = entry.uid, gid = entry.gid,
    mode = type_bits[entry.kind] | entry.mode, mtime = math.floor(entry.mtime), nlink = entry.nlink,
    is_dir = entry.is_dir, is_regular = entry.is_file, is_symlink = entry.is_symlink, is_socket = entry.is_socket,
    is_fifo = entry.is_fifo, symlink_to = entry.symlink_to or "",
  }
end

local letters = { file = "-", dir = "d", symlink = "l", fifo = "p", socket = "s", other = "c" }
local triples = { [0] = "---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx" }
local specials = { { 2048, 6, 4, "s" }, { 1024, 3, 7, "s" }, { 512, 0, 10, "t" } } -- bit, shift of its x, place, letter

local function mode_text(entry)
  local mode = entry.mode
  local text = letters[entry.kind] .. triples[mode >> 6 & 7] .. triples[mode >> 3 & 7] .. triples[mode & 7]
  for _, special in ipairs(specials) do
    local bit, shift, place, letter = table.unpack(special)
    if mode & bit ~= 0 then
      if mode >> shift & 1 == 0 then letter = letter:upper() end
      text = text:sub(1, place - 1) .. letter .. text:sub(place + 1)
    end
  end
  return text
end

local function plain(text) return (text:gsub("%c", "?")) end

local function line_of(entry, known)
  local line = ("%s %3d %-8s %-8s %10d %s %s"):format(mode_text(entry), entry.nlink,
    plain(tostring(known.users[entry.uid] or entry.uid)), plain(tostring(known.groups[entry.gid] or entry.gid)),
    entry.size, os.date("!%Y-%m-%d %H:%M", math.floor(entry.mtime)), plain(entry.name))
  if entry.symlink_to then line = line .. " -> " .. plain(entry.symlink_to) end
  return line .. "\n"
end

-- An answer that is sent as it grows, and whole when it stays small.
local function new_answer(request, content_type)
  local parts, bytes, out = {}, 0, nil
  local self = {}
  function self.put(text)
    parts[#parts + 1], bytes = text, bytes + #text
    if bytes < BATCH then return true end
    out = out or request:stream(200, content_type)
    local good = out:write(table.concat(parts))
    parts, bytes = {}, 0
    return good
  end
  function self.finish()
    local rest = table.concat(parts)
    if not out then return request:send(200, content_type, rest) end
    if out:write(rest) then out:close() end
  end
  return self
end

local list_params = { path = path_params.path, text = { "flag", default = false } }

--- GET /inspect/{uuid}/list
function M.list(app, request, uuid)
  local params = validate.params(request.params, list_params)
  local image = images.find(app, uuid)
  local _ <close> = admit(app)
  local entries, _, _, _ <close> = attempt(params.path, "a directory", image.entries, image, params.path)
  local known = names.of(app, image)
  local answer = new_answer(request, params.text and "text/plain; charset=utf-8" or "application/json")
  if not params.text then answer.put('{"files":[') end
  local first = true
  for entry in entries do
    local text
    if params.text then
      text = line_of(entry, known)
    else
      text = (first and "" or ",") .. record.encode(item_of(entry, known))
    end
    first = false
    if not answer.put(text) then return end -- nobody listens any more
  end
  if not params.text then answer.put('],"path":' .. record.encode(params.path) .. "}") end
  answer.finish()
end

-- -- contents ---------------------------------------------------------------------------------------------------

--- GET and HEAD /inspect/{uuid}/download
function M.download(app, request, uuid)
  local path = validate.params(request.params, path_params).path
  local image = images.find(app, uuid)
  local entry = attempt(path, "a regular file", image.stat, image, path)
  if not entry.is_file then problem(422, ("path %s is not a regular file"):format(path), "invalid") end
  if request.method == "HEAD" then return request:stream(200, BYTES, nil, entry.size):close() end
  local pieces, _, _, _ <close> = attempt(path, "a regular file", image.stream, image, path)
  local out <close> = request:stream(200, BYTES, nil, entry.size)
  for piece in pieces do
    if not out:write(piece) then return end
  end
end

--- GET and HEAD /inspect/{uuid}/archive
function M.archive(app, request, uuid)
  local path = validate.params(request.params, path_params).path
  local image = images.find(app, uuid)
  if (path .. "/"):find("/../", 1, true) then raise("invalid", nil, 'path must not hold ".." in an archive') end
  if request.method == "HEAD" then
    local entry = attempt(path, "a file or directory", image.stat, image, path)
    if not entry.is_file and not entry.is_dir then
      problem(422, ("path %s is neither a file nor a directory"):format(path), "invalid")
    end
    return request:stream(200, TAR):close()
  end
  local _ <close> = admit(app)
  local pieces, _, _, _ <close> = attempt(path, "a file or directory", image.archive, image, path)
  local out <close> = request:stream(200, TAR)
  for piece in pieces do
    if not out:write(piece) then return end
  end
end

-- -- searching ----------------------------------------------------------------------------------------------------

local function expression(text)
  if text == "" then return nil, "must not be empty" end
  if text:find("\n", 1, true) then return nil, "must not hold a newline, which no line has" end
  return text
end

local grep_params = {
  pattern = { "strings", required = true, max = 16384, test = expression },
  path = { "strings", max = 4096, test = path_of },
  glob = { "strings", max = 4096 },
  max_count = { "integer", min = 1, max = GREP_TOTAL },
  max_total = { "integer", min = 1, max = GREP_TOTAL, default = 1000 },
  case = { "string", among = { "sensitive", "insensitive", "smart" } },
  before = { "integer", min = 0, max = GREP_CONTEXT, default = 0 },
  after = { "integer", min = 0, max = GREP_CONTEXT, default = 0 },
}

local function match_of(match)
  local subs = json.array {}
  for i, sub in ipairs(match.submatches) do
    subs[i] = { text = match.line:sub(sub[1], sub[2]), start = sub[1] - 1, ["end"] = sub[2] }
  end
  local is_whole = #match.line == match.length
  local newline = match.unended and "" or "\n"
  return {
    path = match.path, line_number = match.line_number, absolute_offset = match.offset,
    line_text = is_whole and match.line .. newline or match.line, line_bytes = match.length + #newline,
    submatches = subs, type = match.type,
  }
end

--- GET /inspect/{uuid}/grep
function M.grep(app, request, uuid)
  local params = validate.params(request.params, grep_params)
  local image = images.find(app, uuid)
  local _ <close> = admit(app)
  local good, found = pcall(image.grep, image, params.pattern, {
    path = params.path, glob = params.glob, case = params.case, before = params.before, after = params.after,
    max_count = params.max_count, max_total = params.max_total, max_bytes = GREP_BYTES, seconds = GREP_SECONDS,
  })
  if not good then
    if errors.is(found, "not_found") then problem(404, found.message, "not_found") end
    if errors.is(found, "resource") then problem(400, found.message, "resource") end -- a pattern that explodes
    error(found, 0)
  end
  local matches = json.array {}
  for i, match in ipairs(found.matches) do matches[i] = match_of(match) end
  request:reply(200, {
    path = params.path and table.concat(params.path, ",") or "/", patterns = json.array(params.pattern),
    matches = matches, truncated = found.truncated,
  })
end

return M
