--- Contents on a ConTree service: what is there already is not sent again.
--
-- The service knows contents by their SHA-256. A content is hashed here, asked for by its digest, and sent only when it
-- is not there. What a file's digest was is remembered as long as nothing has been done to the file.

local core = require "bough.core"
local errors = require "bough.error"
local progress = require "bough.progress"
local recent = require "bough.contree.recent"
local wire = require "bough.contree.wire"
local work = require "bough.contree.work"

local M = {}

local raise, quote = errors.raise, errors.quote

local WIDTH = 4 -- contents at a time
local HASHES = 20000 -- digests of local files that are remembered
local STORED = 20000 -- uuids that are
local STORED_SECONDS = 600 -- how long the service is trusted to keep what it has told of
local SETTLED = 2 -- seconds: one that was changed a moment ago may be changed again without any sign of it

-- What cannot be told to the service --------------------------------------------------------------------

local function refuse(path, why)
  raise("unsupported", "stage", "%s: %s", quote(path), why)
end

-- The directories that have a file somewhere below them.
local function inhabited(items)
  local above = {}
  for _, item in ipairs(items) do
    if item.kind == "file" then
      local path = item.path:match "^(.*)/"
      while path ~= "" and not above[path] do
        above[path] = true
        path = path:match "^(.*)/"
      end
    end
  end
  return above
end

-- A directory comes of the files in it, as the service makes it: root's, and mode 0755.
local function check_directory(item, above)
  if not above[item.path] then
    refuse(item.path, "the service puts no empty directories in place: exclude it, or have a run make it")
  elseif item.uid ~= 0 or item.gid ~= 0 then
    refuse(item.path, ("its owner would not be %d:%d: the service makes directories for root; have a run do it")
      :format(item.uid, item.gid))
  elseif item.mode and item.mode & 514 ~= 0 then -- 01002
    refuse(item.path, ("its mode would not be %04o: the service makes directories 0755; have a run do it")
      :format(item.mode))
  end
end

-- Nothing has been sent yet.
local function check(items)
  local above = inhabited(items)
  local leaf -- of an empty tree, the innermost is named
  for _, item in ipairs(items) do
    if not utf8.len(item.path) then refuse(item.path, "it is not UTF-8, and the service takes no other names") end
    if item.kind == "symlink" then
      refuse(item.path, "the service puts no symbolic links in place: exclude it, or have a run make it")
    elseif item.mtime then
      refuse(item.path, "mtime: the service gives files a time of its own: have a run set it")
    elseif item.kind == "dir" and not above[item.path] and (not leaf or #item.path > #leaf.path) then
      leaf = item
    end
  end
  if leaf then check_directory(leaf, above) end
  for _, item in ipairs(items) do
    if item.kind == "dir" then check_directory(item, above) end
  end
end

-- Digests --------------------------------------------------------------------------------------------

local kinds = { [2] = "not_found", [20] = "not_found", [13] = "denied", [40] = "invalid" }
local special = { dir = "a directory (bough.dir(path) takes a tree)", fifo = "a fifo", socket = "a socket" }

local function stat(path)
  local found, message, number = core.fs.stat(path)
  if not found then
    error(errors.new(kinds[number] or "io", "stage", { errno = number }, "%s", message), 0)
  elseif found.kind ~= "file" then
    raise("invalid", "stage", "%s: is %s; only regular files can go in", quote(path), special[found.kind] or "a device")
  end
  return found
end

local function refuse_changed(path)
  raise("io", "stage", "%s: it was changed while it was read", quote(path))
end

-- The digest of a local file, and what is known of it. Waits.
local function digest_of(self, path)
  local found = stat(path)
  local known = self.hashes:get(found.version)
  if known then return known, found end
  local sha256, size = core.sha256_file(path)
  if size ~= found.size or stat(path).version ~= found.version then refuse_changed(path) end
  if core.time() - found.ctime > SETTLED then self.hashes:put(found.version, sha256, 1) end
  return sha256, found
end

-- Contents -------------------------------------------------------------------------------------------

local function is_digest(text) return type(text) == "string" and #text == 64 and not text:find "%X" end

local function remember(self, sha256, uuid)
  self.stored:put(sha256, { uuid = uuid, until_ = core.now() + STORED_SECONDS }, 1)
  return uuid
end

local function uuid_of(answer, what)
  local uuid = answer.json and answer.json.uuid
  if not wire.is_uuid(uuid) then raise("protocol", "upload", "the service stored %s without telling its uuid", what) end
  return uuid
end

-- The uuid of a content that the service has, or nil. Waits.
local function ask(self, sha256)
  local known = self.stored:get(sha256)
  if known and known.until_ > core.now() then return known.uuid end
  local good, answer = pcall(self.api.call, self.api, { op = "upload", path = "/files/" .. sha256 })
  if good then return remember(self, sha256, uuid_of(answer, sha256)) end
  if errors.is(answer) and answer.status == 404 then return nil end
  error(answer, 0)
end

---@class bough.contree.content
---@field sha256 string?
---@field size integer
---@field name string for messages
---@field path string? where it is, or
---@field content string? what it is
---@field uuid string?
---@field is_new boolean?

-- Sends a content. `moved` is told of the bytes on their way. Waits.
local function send(self, content, moved)
  local good, answer = pcall(self.api.call, self.api, {
    op = "upload", method = "POST", path = "/files", retry = true, -- twice the same is once
    body = content.path and { path = content.path } or content.content, on_transfer = moved,
  })
  if not good then
    if errors.is(answer) and answer.status == 413 then
      raise("resource", "upload", "%s: %s are more than the service takes", content.name, progress.size(content.size))
    end
    -- one that has shrunk is cut short, and the connection with it
    if content.path and errors.is(answer, "transport") and stat(content.path).size ~= content.size then
      refuse_changed(content.path)
    end
    error(answer, 0)
  end
  local uuid, got = uuid_of(answer, content.name), answer.json.sha256
  if not is_digest(got) or got:lower() ~= content.sha256 then
    if content.path then refuse_changed(content.path) end
    raise("protocol", "upload", "%s: the service stored something else", content.name)
  end
  content.is_new = true
  return remember(self, content.sha256, uuid)
end

-- Bytes of all contents together: those of each are done when it is.
local function new_meter(told, contents)
  local parts = {}
  for _, content in ipairs(contents) do told.total = told.total + content.size end
  return function(i, bytes)
    bytes = math.min(bytes, contents[i].size)
    local before = parts[i] or 0
    if bytes <= before then return end -- sent once more
    parts[i], told.done = bytes, told.done + bytes - before
  end
end

-- Brings contents to the service, those that are the same once. Waits.
local function bring(self, contents, told)
  work.each(#contents, WIDTH, function(i)
    local content = contents[i]
    if content.sha256 then return end
    if content.path then
      local found
      content.sha256, found = digest_of(self, content.path)
      content.size, content.mode = found.size, found.mode
    else
      content.sha256 = core.sha256(content.content)
    end
  end)
  local distinct, first = {}, {}
  for _, content in ipairs(contents) do
    if not first[content.sha256] then
      first[content.sha256] = content
      distinct[#distinct + 1] = content
    elseif first[content.sha256].digest_only and not content.digest_only then
      -- what has the bytes goes before what only names them
      for i, other in ipairs(distinct) do
        if other == first[content.sha256] then distinct[i] = content end
      end
      first[content.sha256] = content
    end
  end
  local meter = new_meter(told, distinct)
  work.each(#distinct, WIDTH, function(i)
    local content = distinct[i]
    local uuid = ask(self, content.sha256)
    if not uuid then
      if content.digest_only then
        raise("not_found", "upload", "no upload %s: the service does not have it", content.sha256:sub(1, 8))
      end
      uuid = send(self, content, function(done) meter(i, done) end)
    end
    content.uuid = uuid
    meter(i, content.size)
  end)
  for _, content in ipairs(contents) do content.uuid = first[content.sha256].uuid end
  return distinct
end

local function content_of(item)
  if item.digest then
    return { sha256 = item.digest, size = 0, name = "upload " .. item.digest:sub(1, 8), digest_only = true }
  elseif item.content then
    return { content = item.content, size = #item.content, name = item.path and quote(item.path) or "the data" }
  end
  return { path = item.source, size = 0, name = quote(item.source) }
end

-- What is staged ---------------------------------------------------------------------------------------

---@class bough.contree.staged: bough.staged
---@field private entries table<string, { uuid: string, uid: integer, gid: integer, mode: string }>
local staged = {}
local staged_meta = { __index = staged, __name = "bough.staged" }

--- The `files` of a request: by path in the image.
---@return table<string, { uuid: string, uid: integer, gid: integer, mode: string }>
function staged:spec()
  local files = {}
  for path, entry in pairs(self.entries) do
    files[path] = { uuid = entry.uuid, uid = entry.uid, gid = entry.gid, mode = entry.mode }
  end
  return files
end

--- Nothing is held: the service keeps what it has for months.
function staged:close() end

staged_meta.__close = staged.close

local DEFAULT_MODE = 420 -- 0644

local function mode_of(item, content)
  local mode = item.mode or DEFAULT_MODE
  if mode == -1 then mode = content.mode or stat(item.source).mode end
  return ("%04o"):format(mode & 4095)
end

local function stage(self, items, told)
  local files, contents = {}, {}
  for _, item in ipairs(items) do
    if item.kind == "file" then
      files[#files + 1] = item
      contents[#files] = content_of(item)
    end
  end
  local distinct = bring(self, contents, told)
  local made = setmetatable({ entries = {}, count = #items, copied_files = 0, copied_bytes = 0 }, staged_meta)
  local lines = {}
  for i, item in ipairs(files) do
    local entry = {
      uuid = contents[i].uuid, uid = item.uid or 0, gid = item.gid or 0, mode = mode_of(item, contents[i]),
    }
    made.entries[item.path] = entry
    lines[i] = ("%q %d:%d %s %s"):format(item.path, entry.uid, entry.gid, entry.mode, contents[i].sha256)
  end
  for _, content in ipairs(distinct) do
    if content.is_new then
      made.copied_files, made.copied_bytes = made.copied_files + 1, made.copied_bytes + content.size
    end
  end
  table.sort(lines)
  made.digest = core.sha256(table.concat(lines, "\n"))
  return made
end

-- The methods of the driver ------------------------------------------------------------------------------

---@class bough.contree.files methods of the driver, which has `api`
local methods = {}
M.methods = methods

local function prepare(self)
  self.hashes = self.hashes or recent.new(2 * HASHES)
  self.stored = self.stored or recent.new(2 * STORED)
end

--- Brings what is to be put in place to the service. Raises `unsupported` before anything is sent for what cannot be
--- told there: links, empty directories, times, owners of directories. Does not wait.
---@param items bough.item[]
---@return bough.job job its result a bough.contree.staged
function methods:stage(items)
  check(items)
  prepare(self)
  return work.job("stage", function(told) return stage(self, items, told) end)
end

--- Brings one content to the service. Does not wait.
---@param item bough.item without a path
---@return bough.job job its result { sha256, size, new }
function methods:upload(item)
  prepare(self)
  return work.job("upload", function(told)
    local content = content_of(item)
    bring(self, { content }, told)
    return { sha256 = content.sha256, size = content.size, new = content.is_new or false }
  end)
end

--- Whether the service has a content. Waits.
---@param sha256 string
---@return boolean
function methods:has_file(sha256)
  return self.api:exists { op = "exists", path = "/files/" .. wire.escape(sha256) }
end

return M
